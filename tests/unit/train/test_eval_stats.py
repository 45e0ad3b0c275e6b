"""Statistics of rows add up over tiles, tasks and ranks."""

import numpy as np
import pytest
import torch

from caskd.train.loss import (
    ROW_STATS,
    Head,
    LossRows,
    TeacherRows,
    best_step,
    eval_metrics,
    row_stats,
    sum_row_stats,
)
from caskd.train.loss.eval_stats import NUM_BINS

N, H, V, K = 37, 8, 19, 5


def case() -> tuple[torch.Tensor, Head, LossRows]:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, H, generator=generator) for n in (N, V))
    logits, ids = torch.randn(N, V, generator=generator).mul(2).topk(K, dim=1)
    logsumexp = logits.logsumexp(1) + 0.1
    # A store with --min-mass keeps fewer than K cells of some rows; row 0 has no teacher.
    num_kept = torch.tensor([0, 1, K - 1, 2, *[K] * (N - 4)])
    is_kept = torch.arange(K) < num_kept[:, None]
    kept_mass = torch.where(is_kept, (logits - logsumexp[:, None]).exp(), 0).sum(1)
    teacher = TeacherRows(
        argmax=ids[:, 0],
        topk_ids=ids,
        topk_logits=logits,
        num_kept=num_kept,
        logsumexp=logsumexp,
        tail_mass=1 - kept_mass,
    )
    labels = torch.randint(V, (N,), generator=generator)
    return hidden, Head(weight, torch.linspace(-1, 1, V), 3.0, 0.5), LossRows(labels, teacher, None)


def test_each_statistic_is_its_definition() -> None:
    hidden, head, rows = case()
    logits = 3.0 * torch.tanh(0.5 * (hidden @ head.weight.T + head.bias) / 3.0)
    logprobs = logits.double().log_softmax(1)
    found = dict(zip(ROW_STATS, row_stats(hidden, head, rows, "either").double().T, strict=True))
    nll = -logprobs[range(N), rows.labels]
    torch.testing.assert_close(found["nll"], nll, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found["confidence"], logprobs.exp().amax(1), rtol=1e-5, atol=1e-6)
    correct = logits.argmax(1) == rows.labels
    assert torch.equal(found["correct"].bool(), correct)
    assert rows.teacher is not None
    assert torch.equal(found["kept"].bool(), correct | (rows.teacher.argmax == rows.labels))
    unasked = row_stats(hidden, head, rows, "given")[:, ROW_STATS.index("kept")]
    assert bool(unasked.isnan().all())
    assert found["distilled"].tolist() == [0.0, *[1.0] * (N - 1)]
    for row in range(1, N):
        kept = slice(int(rows.teacher.num_kept[row]))
        theirs = (rows.teacher.topk_logits[row, kept] - rows.teacher.logsumexp[row]).double()
        ours = logprobs[row, rows.teacher.topk_ids[row, kept]]
        tail = 1 - theirs.exp().sum()
        kl = (theirs.exp() * (theirs - ours)).sum() + tail * (tail / (1 - ours.exp().sum())).log()
        assert float(found["kl"][row]) == pytest.approx(float(kl), abs=1e-5)
    assert found["kl"][0] == 0


def test_tiles_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, head, rows = case()
    whole = row_stats(hidden, head, rows, "all")
    monkeypatch.setattr("caskd.train.loss.eval_stats.TILE_BYTES", 4 * V * 5)
    torch.testing.assert_close(row_stats(hidden, head, rows, "all"), whole)
    assert row_stats(hidden[:0], head, rows.take(torch.arange(0)), "all").shape == (
        0,
        len(ROW_STATS),
    )


def test_sums_of_parts_are_the_sum_of_the_whole() -> None:
    stats = row_stats(*case(), "all")
    group = torch.arange(N) % 3
    whole = sum_row_stats(stats, group, 3)
    parts = [sum_row_stats(stats[i::2], group[i::2], 3) for i in range(2)]
    torch.testing.assert_close(parts[0] + parts[1], whole)
    together, every = eval_metrics(whole.numpy()), stats.double().mean(0)
    assert together.num_rows == N
    assert together.nll == pytest.approx(float(every[0]))
    assert together.kl == pytest.approx(float(stats[:, 3].double().sum()) / (N - 1))
    assert eval_metrics(whole[1].numpy()).num_rows == len(range(1, N, 3))


def test_calibration_error_by_hand() -> None:
    """Two bins: four rows at 0.9 of which two are right, one row at 0.1 that is wrong."""
    rows = torch.zeros(5, len(ROW_STATS))
    rows[:, ROW_STATS.index("confidence")] = torch.tensor([0.9, 0.9, 0.9, 0.9, 0.1])
    rows[:2, ROW_STATS.index("correct")] = 1
    sums = sum_row_stats(rows, torch.zeros(5).long(), 1)
    assert eval_metrics(sums.numpy()).ece == pytest.approx((4 * 0.4 + 1 * 0.1) / 5)


def test_no_rows_have_no_averages() -> None:
    metrics = eval_metrics(np.zeros(1 + len(ROW_STATS) + 3 * NUM_BINS))
    assert (metrics.num_rows, metrics.nll, metrics.ece) == (0, None, None)


def test_the_best_step_is_the_first_of_equals() -> None:
    lines = [
        {"step": 0, "nll": None, "accuracy": 0.0},
        {"step": 2, "nll": 1.5, "accuracy": 0.5},
        {"step": 4, "nll": 1.0, "accuracy": 0.5},
        {"step": 6, "nll": 1.0, "accuracy": 0.2},
    ]
    assert best_step(lines, "nll") == 4
    assert best_step(lines, "accuracy") == 2
    assert best_step(lines[:1], "nll") is None
