"""Synthetic rows for the loss tests, and a second implementation of the formula in numpy.

Dimension letters: N rows, k stored cells of a teacher row, V vocabulary, H hidden width.
"""

from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from caskd.train.loss import LossSums, TeacherRows, cascade_aware_loss

TRITON = pytest.param(
    "triton", marks=pytest.mark.skipif(find_spec("triton") is None, reason="triton is missing")
)
FAST = ("torch", TRITON)
IMPLS = ("dense", *FAST)
DEVICES = {"triton": "cuda" if torch.cuda.is_available() else "cpu"}
"""Where an implementation is tested; others on the CPU."""


@dataclass(frozen=True, eq=False)
class Case:
    hidden: Tensor
    weight: Tensor
    labels: Tensor
    teacher: TeacherRows
    teacher_logits: Tensor


def stored(logits: Tensor, top_k: int) -> TeacherRows:
    """What a store keeps of dense teacher logits [N, V]."""
    values, ids = logits.topk(top_k, dim=1)
    logsumexp = logits.logsumexp(1)
    outside = logits.scatter(1, ids, -torch.inf).logsumexp(1)
    return TeacherRows(
        argmax=ids[:, 0],
        topk_ids=ids,
        topk_logits=values,
        num_kept=torch.full((len(logits),), top_k),
        logsumexp=logsumexp,
        tail_mass=(outside - logsumexp).exp(),
    )


def make_case(
    num_rows: int = 41,
    hidden_size: int = 7,
    vocab_size: int = 53,
    top_k: int = 6,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> Case:
    """Rows of which the teacher, the student, both or neither get the label right."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    hidden = normal(num_rows, hidden_size).to(dtype)
    weight = normal(vocab_size, hidden_size).to(dtype)
    teacher_logits = 3 * normal(num_rows, vocab_size)
    teacher = stored(teacher_logits, top_k)
    student_argmax = (hidden.double() @ weight.double().T).argmax(1)
    labels = torch.randint(0, vocab_size, (num_rows,), generator=generator)
    kind = torch.arange(num_rows) % 4
    labels = torch.where(kind == 1, teacher.argmax, labels)
    labels = torch.where(kind == 2, student_argmax, labels)
    return Case(hidden, weight, labels, teacher, teacher_logits)


def sampled(teacher: TeacherRows) -> TeacherRows:
    """The kept cells as if they were all there is: shares that sum to 1, no tail."""
    kept = torch.arange(teacher.topk_ids.shape[1]) < teacher.num_kept[:, None]
    logits = teacher.topk_logits.masked_fill(~kept, -torch.inf)
    logsumexp = torch.where(teacher.num_kept > 0, logits.logsumexp(1), 0)
    return replace(
        teacher,
        topk_logits=logits,
        logsumexp=logsumexp,
        tail_mass=torch.zeros_like(teacher.tail_mass),
    )


def for_tail(case: Case, tail: str) -> Case:
    """The case itself, or with the teacher's rows as a sampled store has them."""
    return replace(case, teacher=sampled(case.teacher)) if tail == "none" else case


def run_loss(
    hidden: Tensor, weight: Tensor, labels: Tensor, teacher: TeacherRows | None, **options: Any
) -> LossSums:
    """`cascade_aware_loss` on the device where its implementation is tested; sums on the CPU."""
    device = DEVICES.get(options.get("impl", "auto"), "cpu")
    if teacher is not None:
        columns = (
            None if column is None else column.to(device) for column in vars(teacher).values()
        )
        teacher = TeacherRows(*columns)
    for name in ("bias", "row_weights", "keep"):
        if options.get(name) is not None:
            options[name] = options[name].to(device)
    places = (tensor.to(device) for tensor in (hidden, weight, labels))
    sums = cascade_aware_loss(*places, teacher, **options)
    return LossSums(*(tensor.cpu() for tensor in sums.tensors()))


def gradients(case: Case, *, upstream: float = 1.0, **options) -> tuple[LossSums, list[Tensor]]:
    """The sums, and the gradients of hidden, weight and (where given) bias."""
    hidden = case.hidden.clone().requires_grad_()
    weight = case.weight.clone().requires_grad_()
    leaves = [hidden, weight]
    if options.get("bias") is not None:
        options["bias"] = options["bias"].clone().requires_grad_()
        leaves.append(options["bias"])
    sums = run_loss(hidden, weight, case.labels, case.teacher, **options)
    (sums.loss * upstream).backward()
    return sums, [leaf.grad for leaf in leaves]


def relative_error(got: Tensor, expected: Tensor) -> float:
    """Frobenius norm of the difference over that of `expected`; plain norm where that is 0."""
    scale = float(expected.double().norm()) or 1.0
    return float((got.double() - expected.double()).norm()) / scale


def numpy_cat_loss(case: Case, w: float, rule: str) -> float:
    """The equation of the paper with the bucket as one more class, row by row."""
    logits = case.hidden.double().numpy() @ case.weight.double().numpy().T
    total = 0.0
    for i, row in enumerate(logits):
        p_student = np.exp(row - row.max())
        p_student /= p_student.sum()
        dense = np.exp(case.teacher_logits[i].numpy())
        dense /= dense.sum()
        top = np.argsort(-dense)[: case.teacher.topk_ids.shape[1]]
        rest = np.setdiff1d(np.arange(len(row)), top)
        label = int(case.labels[i])
        student_is_right = int(np.argmax(p_student)) == label
        teacher_is_right = int(np.argmax(dense)) == label
        alpha = {
            "all": True,
            "either": student_is_right or teacher_is_right,
            "teacher": teacher_is_right,
            "student": student_is_right,
        }[rule]
        cross_entropy = -(dense[top] * np.log(p_student[top])).sum()
        cross_entropy -= dense[rest].sum() * np.log(p_student[rest].sum())
        total += alpha * (-w * np.log(p_student[label]) + (1 - w) * cross_entropy)
    return total
