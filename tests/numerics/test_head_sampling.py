"""Draws with a head: right by the book, and unbiased with a smaller variance than draws alone.

Legend: R rows, V vocabulary, h ids of the head, N draws, r probability outside of the head.
"""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from caskd.precompute.rows import targets_from
from caskd.store import StoreBatch
from caskd.store.write import ShardExample
from caskd.train.data import teacher_rows
from caskd.train.loss import TeacherRows, cascade_aware_loss

V, HEAD, DRAWS = 7, 2, 2


def logits_of(num_rows: int, seed: int = 0, vocab: int = V) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(num_rows, vocab, generator=generator)


def numbers_of(num_rows: int, num_samples: int, index: int = 0) -> np.ndarray:
    nothing = np.zeros(0, np.uint32)
    example = ShardExample(index, nothing, nothing.astype(np.uint8), 0, num_rows)
    capture = {"kind": "head_sampled", "head": 1, "num_samples": num_samples, "sample_seed": 4}
    return targets_from(capture).numbers([example])


def rows_of(logits: Tensor, head: int, num_samples: int, index: int = 0) -> dict[str, np.ndarray]:
    capture = {"kind": "head_sampled", "head": head, "num_samples": num_samples, "sample_seed": 4}
    labels = torch.zeros(len(logits), dtype=torch.int64)
    numbers = numbers_of(len(logits), num_samples, index)
    return targets_from(capture).fields(logits, labels, numbers)


def test_the_head_is_a_topk_and_each_number_meets_its_id_among_the_others() -> None:
    logits, head, num = logits_of(40, vocab=30), 4, 25
    rows = rows_of(logits, head, num)
    p = torch.softmax(logits.double(), 1).numpy()
    order = np.argsort(-p, axis=1, kind="stable")
    np.testing.assert_array_equal(rows["sampled_ids"][:, :head], order[:, :head])
    np.testing.assert_array_equal(rows["num_head"], head)
    for n, row in enumerate(p):
        rest = row.copy()
        rest[order[n, :head]] = 0
        np.testing.assert_allclose(rows["drawn_mass"][n], rest.sum(), rtol=1e-5)
        drawn = np.searchsorted(np.cumsum(rest / rest.sum()), numbers_of(40, num)[n], side="right")
        wanted = np.bincount(np.minimum(drawn, 29), minlength=30)
        got = np.zeros(30, int)
        cells = slice(head, rows["num_kept"][n])
        got[rows["sampled_ids"][n, cells]] = rows["sampled_counts"][n, cells]
        assert np.abs(got - wanted).sum() <= 2  # one draw may move by rounding
        assert not set(rows["sampled_ids"][n, cells]) & set(order[n, :head])


def test_a_row_of_nan_has_no_cells() -> None:
    logits = logits_of(3, vocab=9)
    logits[1, 4] = torch.nan
    rows = rows_of(logits, 2, 5)
    assert rows["num_kept"][1] == rows["num_head"][1] == 0
    assert not rows["sampled_counts"][1].any()
    assert np.isneginf(rows["head_logits"][1]).all()
    assert (rows["num_kept"][[0, 2]] > 2).all()


def batch_of(rows: dict[str, np.ndarray]) -> StoreBatch:
    size = len(rows["num_kept"])
    nothing: Any = np.zeros(0, np.int64)
    return StoreBatch(
        nothing, nothing, nothing, np.array([0, size]), np.array([0, size]), nothing,
        np.zeros(size, np.uint32), **rows,
    )  # fmt: skip


def dense(teacher: TeacherRows, vocab: int) -> Tensor:
    """[R, V] the target distribution of teacher rows, in float64."""
    assert teacher.topk_ids is not None
    assert teacher.topk_logits is not None
    p = teacher.topk_logits.double().exp()
    return torch.zeros(len(p), vocab, dtype=torch.float64).scatter_add_(1, teacher.topk_ids, p)


def test_the_targets_of_a_batch_are_the_float64_twin() -> None:
    logits, head, num = logits_of(30, vocab=20), 3, 9
    rows = rows_of(logits, head, num)
    got = dense(teacher_rows(batch_of(rows)), 20)
    p = torch.softmax(logits.double(), 1).numpy()
    for n in range(30):
        ids, counts = rows["sampled_ids"][n], rows["sampled_counts"][n]
        wanted = np.zeros(20)
        wanted[ids[:head]] = p[n, ids[:head]]
        rest = 1 - wanted.sum()
        np.add.at(wanted, ids[head:], rest * counts[head:] / num)
        np.testing.assert_allclose(got[n].numpy(), wanted, atol=2e-7)


@pytest.mark.parametrize("num_head", [0, 1, HEAD, V - 1])
@pytest.mark.parametrize("impl", ["dense", "torch"])
def test_the_expected_gradient_over_all_draws_is_that_of_the_whole_distribution(
    impl: Any, num_head: int
) -> None:
    """Every outcome of two draws with its probability, in float64; mutants are 1e3 times off."""
    logits = logits_of(1, seed=3).double()
    p = logits.softmax(1)[0]
    head = p.argsort(descending=True)[:num_head].tolist()
    rest = [v for v in range(V) if v not in head]
    r = p[rest].sum()
    generator = torch.Generator().manual_seed(5)
    hidden = torch.randn(1, 4, generator=generator, dtype=torch.float64)
    weight = torch.randn(V, 4, generator=generator, dtype=torch.float64).requires_grad_()
    label = torch.tensor([head[0] if head else 0])

    def gradient(objective: str, target: Tensor) -> Tensor:
        ids = target.nonzero().T
        log_p, zero = target[ids[0]].log()[None], torch.zeros(1, dtype=torch.float64)
        num = torch.tensor([len(log_p[0])])
        teacher = TeacherRows(p.argmax()[None], ids, log_p, num, zero, zero)
        sums = cascade_aware_loss(
            hidden, weight, label, teacher, objective=objective, tail="none", impl=impl
        )
        (found,) = torch.autograd.grad(sums.loss, weight)
        return found

    for objective in ("dist", "cat-dist"):
        whole, mean = gradient(objective, p.clone()), torch.zeros_like(weight)
        for draws in itertools.product(rest, repeat=DRAWS):
            target = torch.zeros(V, dtype=torch.float64)
            target[head] = p[head]
            for v in draws:
                target[v] += r / DRAWS
            mean += torch.stack([p[v] / r for v in draws]).prod() * gradient(objective, target)
        assert float((mean - whole).abs().max()) < 1e-10


def test_the_variance_is_the_closed_form_and_below_that_of_draws_alone() -> None:
    """Of the gradient by the logits, summed: (r^2 - sum of p^2 outside of the head) / N."""
    logits, head, num, repeats = logits_of(1, seed=1, vocab=40), 5, 8, 6000
    p = torch.softmax(logits.double(), 1)[0]
    same = logits.expand(repeats, -1)
    targets = dense(teacher_rows(batch_of(rows_of(same, head, num))), 40)
    measured = float(targets.var(0).sum())
    outside = p.sort(descending=True).values[head:]
    closed = float((outside.sum() ** 2 - (outside**2).sum()) / num)
    alone = float((1 - (p**2).sum()) / num)
    assert measured == pytest.approx(closed, rel=0.05)
    assert closed < float(outside.sum()) * alone
    torch.testing.assert_close(targets.mean(0), p, atol=4 * (closed / repeats) ** 0.5, rtol=0)
