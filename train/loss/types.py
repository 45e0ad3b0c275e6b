"""Inputs and outputs of the loss, as small frozen records of tensors.

Dimension letters: N rows, k stored cells of a teacher row, V student vocabulary, H hidden width.
"""

from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor

from caskd.train.delegation import CELLS, DelegateRows, Delegation
from caskd.train.objectives import Confidence, MaskRule, Tail

NUM_DELEGATION_SUMS = 3 + CELLS


@dataclass(frozen=True, eq=False)
class TeacherRows:
    """The teacher's fields of each row, as the store holds them.

    Only `argmax` is needed where the objective has no teacher term (`w = 1`). The other fields may
    be None, and the loss then reports no teacher sums. A row with `num_kept` 0 has no teacher row.
    """

    argmax: Tensor
    """[N] the teacher's most likely id."""
    topk_ids: Tensor | None = None
    """[N, k] ids; cells from `num_kept` on are padding."""
    topk_logits: Tensor | None = None
    """[N, k] raw logits, in nats."""
    num_kept: Tensor | None = None
    """[N] number of the k cells that count."""
    logsumexp: Tensor | None = None
    """[N] over the teacher's whole logit row: exp(topk_logits - logsumexp) is a probability."""
    tail_mass: Tensor | None = None
    """[N] the teacher's probability outside the top-k."""

    @property
    def has_distribution(self) -> bool:
        """Whether no field is None, as the teacher term needs."""
        return all(getattr(self, field.name) is not None for field in fields(self))

    def present(self) -> Tensor:
        """[N] bool: rows that have a teacher row."""
        if self.num_kept is None:
            return torch.ones_like(self.argmax, dtype=torch.bool)
        return self.num_kept > 0

    def take(self, index: Tensor | slice) -> "TeacherRows":
        """The rows at `index` [n]."""
        rest = (getattr(self, field.name) for field in fields(self)[1:])
        taken = (None if column is None else column[index] for column in rest)
        return TeacherRows(self.argmax[index], *taken)


@dataclass(frozen=True, eq=False)
class LossRows:
    """The rows of one call, without the student's hidden states."""

    labels: Tensor
    """[N] int64."""
    teacher: TeacherRows | None
    weights: Tensor | None
    """[N] constant factor of each row's loss; None is 1."""
    delegate: DelegateRows | None = None
    """What the choice of delegated rows reads; None without a CALL column."""
    keep: Tensor | None = None
    """[N] bool, the caller's mask, where rows that it drops may count otherwise; else None."""

    def take(self, index: Tensor | slice) -> "LossRows":
        """The rows at `index` [n]."""
        return LossRows(
            self.labels[index],
            None if self.teacher is None else self.teacher.take(index),
            None if self.weights is None else self.weights[index],
            None if self.delegate is None else self.delegate.take(index),
            None if self.keep is None else self.keep[index],
        )


@dataclass(frozen=True)
class LossTerms:
    """Settings of one call: the mask rule still to apply, label weight, tail mode."""

    rule: MaskRule
    w: float
    tail: Tail
    delegation: Delegation | None = None
    """The CALL column of the head; None if it has none."""
    confidence: Confidence | None = None

    @property
    def keeps_all_rows(self) -> bool:
        """Whether rows that the mask drops may count otherwise, and go through the head."""
        return self.delegation is not None or bool(self.confidence and self.confidence.weight)


@dataclass(frozen=True, eq=False)
class Head:
    """The student's output head: logits = cap(scale * (hidden @ weight.T + bias))."""

    weight: Tensor
    """[V, H]."""
    bias: Tensor | None
    """[V]."""
    softcap: float | None
    """logits become softcap * tanh(logits / softcap)."""
    scale: float | None

    def logits(self, product: Tensor) -> Tensor:
        """Logits [N, V] of `hidden @ weight.T` [N, V], differentiable."""
        if self.bias is not None:
            product = product + self.bias.to(product.dtype)
        if self.scale is not None:
            product = product * self.scale
        if self.softcap is not None:
            product = self.softcap * torch.tanh(product / self.softcap)
        return product

    def finish_(self, product: Tensor) -> Tensor:
        """The same in place and without gradients."""
        if self.bias is not None:
            product.add_(self.bias.detach().to(product.dtype))
        if self.scale is not None:
            product.mul_(self.scale)
        if self.softcap is not None:
            product.div_(self.softcap).tanh_().mul_(self.softcap)
        return product


@dataclass(frozen=True, eq=False)
class LossSums:
    """Sums and counts of one call, as 0-d tensors; the loss never divides them.

    Sums of several micro-batches add up (`+`). Only `loss` carries a gradient. Rows that are known
    before the forward not to count (ignored label, no teacher row where one is needed, dropped by a
    teacher-only mask or by the caller's mask) never go through the head. So student sums are over
    `num_measured` rows.
    """

    loss: Tensor
    """Sum over kept rows of weight * (w * label_nll + (1 - w) * teacher_cross_entropy), nats."""
    label_nll: Tensor
    """Sum of -log p_S(label) over measured rows, nats."""
    teacher_cross_entropy: Tensor
    """Sum over distilled rows, nats."""
    teacher_kl: Tensor
    """Sum of cross-entropy less the teacher's entropy, bucket included: 0 for a perfect student."""
    tail_mass: Tensor
    """Sum of the teacher's tail mass over distilled rows."""
    acceptance_low: Tensor
    """Sum over distilled rows of the least acceptance of the student as the teacher's draft model
    (`caskd.models.decoding.acceptance_bounds`); of no meaning for sampled stores."""
    acceptance_high: Tensor
    """Sum of the largest."""
    unsure_kl: Tensor
    """Sum of KL(p_S || uniform) over the rows of the confidence term, nats; 0 without the term."""
    num_rows: Tensor
    """Rows with a label."""
    num_kept: Tensor
    """Rows that the mask keeps; divided by `num_rows`, the keep_fraction."""
    num_measured: Tensor
    """Rows that went through the student's head."""
    num_distilled: Tensor
    """Measured rows that have a teacher distribution."""
    student_correct: Tensor
    """Measured rows whose student argmax is the label."""
    teacher_correct: Tensor
    """Rows among `num_rows` whose teacher argmax is the label."""
    num_unsure: Tensor
    """Measured rows that the confidence term trains to be unsure; 0 without the term."""
    delegation: Tensor | None = None
    """`NUM_DELEGATION_SUMS` float64 sums of a head with a CALL column: rows delegated (l2d and ova:
    rows in which the student would defer), their loss, rows whose student argmax is outside the
    teacher's top-k, then the rows of each cell of scores."""

    def __add__(self, other: Self) -> "LossSums":
        return LossSums(*(a + b for a, b in zip(self.tensors(), other.tensors(), strict=True)))

    def tensors(self) -> tuple[Tensor, ...]:
        """The fields in order: eight float sums, seven int64 counts, and `delegation` if it is not
        None."""
        values = (getattr(self, field.name) for field in fields(self))
        return tuple(value for value in values if value is not None)

    def detach(self) -> "LossSums":
        """The sums without the graph, for logs."""
        return LossSums(*(tensor.detach() for tensor in self.tensors()))

    @classmethod
    def zeros(
        cls, device: torch.device, dtype: torch.dtype, *, delegates: bool = False
    ) -> "LossSums":
        """The sums of no rows, with those of a CALL column if the head has one."""
        zeros = [torch.zeros((), device=device, dtype=dtype) for _ in range(8)]
        zeros += [torch.zeros((), device=device, dtype=torch.int64) for _ in range(7)]
        if delegates:
            zeros.append(torch.zeros(NUM_DELEGATION_SUMS, device=device, dtype=torch.float64))
        return cls(*zeros)
