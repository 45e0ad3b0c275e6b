"""The share of delegated rows: thresholds from counts, over a run and across checkpoints."""

import numpy as np
import pytest
import torch

from caskd.train.delegation import (
    CELLS,
    NOTHING,
    DelegationShare,
    Threshold,
    cells_of,
    chosen_rows,
    threshold_for,
)

VOCAB = 53


def test_the_threshold_reaches_the_share_also_with_ties():
    generator = torch.Generator().manual_seed(1)
    uniform = torch.rand(20_000, generator=generator)
    nll = torch.randn(20_000, generator=generator).abs()
    tied = torch.where(nll > 1, 1.0, 0.5).masked_fill(nll < 0.3, -torch.inf)
    for scores in (nll, tied, torch.zeros_like(nll)):
        cells = cells_of(scores)
        counts = np.bincount(cells[cells >= 0], minlength=CELLS).astype(float)
        for share in (0.05, 0.15, 0.5):
            chosen = chosen_rows(cells, uniform, threshold_for(counts, len(cells), share))
            assert abs(float(chosen.double().mean()) - share) < 0.01
            lowest = scores[chosen].min()
            assert float((scores[~chosen] > lowest + 0.01).double().mean()) == 0
    assert threshold_for(np.zeros(CELLS), 0, 0.15) == NOTHING
    few = threshold_for(np.eye(CELLS)[7] * 3, 100, 0.15)
    assert few == Threshold(0, 1.0)
    assert cells_of(torch.tensor([-torch.inf, torch.nan, torch.inf])).tolist()[:2] == [-1, -1]


def test_the_counts_of_a_run_survive_a_checkpoint_exactly():
    share = DelegationShare("loss", 0.15, VOCAB)
    assert share.now().threshold == NOTHING
    for step in range(5):
        counts = np.random.default_rng(step).integers(0, 9, CELLS).tolist()
        share.add(counts, 4 * CELLS + step, 900 + step)
    again = DelegationShare("loss", 0.15, VOCAB, share.to_json())
    assert again.now() == share.now()
    assert again.to_json() == share.to_json()
    old = {name: share.to_json()[name] for name in ("cells", "num_rows")}
    assert DelegationShare("loss", 0.15, VOCAB, old).now().threshold != NOTHING


def test_a_short_run_reaches_its_share_while_the_scores_fall():
    """From the first step, which delegates nothing, and with scores that fall by the step."""
    generator = torch.Generator().manual_seed(2)
    share, delegated, rows = DelegationShare("loss", 0.15, VOCAB), [], 2000
    for step in range(40):
        falling = 4 * 0.93**step + 2 * torch.randn(rows, generator=generator).abs()
        cells = cells_of(falling)
        uniform = torch.rand(rows, generator=generator)
        chosen = chosen_rows(cells, uniform, share.now().threshold)
        delegated.append(int(chosen.sum()))
        share.add(np.bincount(cells, minlength=CELLS).tolist(), rows, delegated[-1])
    shares = np.array(delegated) / rows
    assert shares[0] == 0
    assert shares.mean() == pytest.approx(0.15, abs=0.01)
    assert shares[20:].mean() == pytest.approx(0.15, abs=0.01)
    assert shares.max() < 0.31


def test_rows_that_a_rule_never_delegates_are_not_owed():
    share = DelegationShare("gap", 0.3, VOCAB)
    for _ in range(50):
        share.add([0.0] * (CELLS - 1) + [10.0], 100, 10)
    assert share.now().threshold == Threshold(0, 1.0)
    for _ in range(10):
        share.add([0.0] * (CELLS - 1) + [100.0], 100, 60)
    assert share.now().threshold.fraction < 0.6
