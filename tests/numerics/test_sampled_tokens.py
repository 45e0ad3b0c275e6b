"""Sampled token cascades: the law of what is emitted is the target's, whatever is drafted."""

import numpy as np
import pytest
import torch

from caskd.models.decoding import (
    TOKEN_RULES,
    accept_or_redraw,
    draw,
    target_distribution,
    uniforms_at,
)

V = 40
NUMBERS = {
    "spec": 0.0, "chow": 0.8, "diff": 0.02, "opt": 0.3, "token-v1": 0.02, "token-v2": 0.02,
    "token-v3": 0.5, "entropy": 3.0, "margin": 0.5, "call": -1.0, "router": 0.5, "rsd": 0.02,
}  # fmt: skip


def scores_of(rule, seed):
    """Scores [1] that are read in place of q, above the number for even seeds."""
    if TOKEN_RULES[rule].score is None:
        return None
    return torch.tensor([NUMBERS[rule] + (0.1 if seed % 2 == 0 else -0.1)], dtype=torch.float64)


def distributions(seed):
    generator = torch.Generator().manual_seed(seed)
    logits = 3.0 * torch.randn(2, 1, V, generator=generator, dtype=torch.float64)
    return logits.softmax(-1).unbind()


def by_hand(rule, number, q, p, seed):
    """Targets [V] as the paper states them."""
    most = p.max()
    defers = {
        "spec": True,
        "chow": q.max() < 1 - number,
        "diff": q.max() < most - number,
        "opt": q.max() < most - number * 0.5 * abs(p - q).sum(),
        "entropy": -(q * np.log(q)).sum() >= number,
        "margin": np.subtract(*np.log(np.sort(q)[:-3:-1])) <= number,
        "call": seed % 2 == 0,
        "router": seed % 2 == 0,
    }
    if rule in defers:
        return p if defers[rule] else q
    if rule == "rsd":
        kept = q >= number
        return p * kept + q * p[~kept].sum()
    bad = {
        "token-v1": q < most - number,
        "token-v2": p < most - number,
        "token-v3": p < (1 - number) * most,
    }[rule]
    return q * ~bad + p * q[bad].sum()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("rule", NUMBERS)
def test_targets_are_the_papers(rule, seed):
    q, p = distributions(seed)
    target = target_distribution(TOKEN_RULES[rule], NUMBERS[rule], q, p, scores_of(rule, seed))
    expected = by_hand(rule, NUMBERS[rule], q[0].numpy(), p[0].numpy(), seed)
    np.testing.assert_allclose(target[0].numpy(), expected, atol=1e-15)
    assert float(target.sum()) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize(
    ("draws", "limit"), [(40_000, 9e-3), pytest.param(400_000, 3e-3, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("rule", NUMBERS)
def test_the_law_is_the_targets(rule, draws, limit):
    q, p = distributions(1)
    target = target_distribution(TOKEN_RULES[rule], NUMBERS[rule], q, p, scores_of(rule, 0))
    generator = torch.Generator().manual_seed(7)
    uniforms = torch.rand(draws, 3, generator=generator, dtype=torch.float64)
    drafted = draw(q.expand(draws, V).contiguous(), uniforms[:, 0].contiguous())
    accepted, emitted = accept_or_redraw(
        drafted, q.expand(draws, V), target.expand(draws, V), uniforms[:, 1:]
    )
    found = torch.bincount(emitted, minlength=V).double() / draws
    assert float(0.5 * (found - target[0]).abs().sum()) < limit
    overlap = float(torch.minimum(q, target).sum())  # 1 - TV
    assert float(accepted.double().mean()) == pytest.approx(overlap, abs=limit)


def test_uniform_numbers_belong_to_a_position():
    found = np.array([uniforms_at(3, "a", position) for position in range(4000)])
    assert found.min() >= 0.0
    assert found.max() < 1.0
    np.testing.assert_allclose(found.mean(axis=0), 0.5, atol=0.02)
    assert abs(np.corrcoef(found.T) - np.eye(3)).max() < 0.06
    assert uniforms_at(3, "a", 5) == tuple(found[5])
    others = (uniforms_at(4, "a", 5), uniforms_at(3, "b", 5), uniforms_at(3, "a", 6))
    assert all(other[0] != found[5][0] for other in others)
