"""Intervals: over examples and seeds, exact and by the area's first-order term."""

import numpy as np
import pytest

from caskd.eval import deferral_curve
from caskd.eval.stats import (
    area_influence,
    area_replicates,
    arm_difference,
    interval,
    mean_replicates,
)
from caskd.eval.stats.bootstrap import _poisson_weights


def cascade(seed, count, skill=0.8, digits=1):
    """Score, small and large quality; scores of one digit tie often."""
    generator = np.random.default_rng(seed)
    hard = np.random.default_rng(count).uniform(size=count)
    small = (generator.uniform(size=count) < skill * (1 - hard)).astype(float)
    large = (np.random.default_rng(7).uniform(size=count) < 0.9).astype(float)
    return np.round(hard + 0.3 * generator.normal(size=count), digits), small, large


def test_the_influence_is_the_derivative_of_the_area():
    score, small, large = cascade(0, 60)
    area, influence = area_influence(score, small, large)
    assert area == pytest.approx(deferral_curve(score, small, large).audc, abs=1e-12)
    assert influence.sum() == pytest.approx(0.0, abs=1e-9)
    # An example that is there 1 + 1/1000 times: every other one 1000 times, it 1001 times.
    for place in (0, 17, 59):
        counts = np.full(60, 1000)
        counts[place] += 1
        repeated = [np.repeat(part, counts) for part in (score, small, large)]
        moved = deferral_curve(*repeated).audc - area
        assert moved == pytest.approx(influence[place] / counts.sum(), rel=2e-3, abs=1e-9)


def test_both_ways_of_drawing_give_the_same_interval():
    score, small, large = cascade(1, 2000)
    other, small_too, _ = cascade(2, 2000, skill=0.7, digits=6)
    series = [(score, small), (other, small_too)]
    exact, linear = (area_replicates(series, large, exact=kind) for kind in (True, False))
    assert exact.shape == linear.shape == (2, 1000)
    spread = exact.std(axis=1)
    # 1,000 draws know a standard deviation to 2.2 %, a mean to 3 % of it, and their quotient of
    # two to 3.2 %; three of these.
    np.testing.assert_allclose(linear.std(axis=1), spread, rtol=0.1)
    np.testing.assert_allclose(linear.mean(axis=1), exact.mean(axis=1), atol=0.14 * spread.max())
    np.testing.assert_allclose(
        interval(linear[0] - linear[1]), interval(exact[0] - exact[1]), atol=0.25 * spread.max()
    )


def test_the_interval_covers_the_truth():
    # The truth is the area of a population of 200,000; samples of 300 are drawn from it.
    population = cascade(3, 200_000, digits=2)
    truth = deferral_curve(*population).audc
    generator = np.random.default_rng(0)
    inside = 0
    for sample in range(200):
        picks = generator.integers(0, 200_000, 300)
        score, small, large = (part[picks] for part in population)
        replicates = area_replicates([(score, small)], large, num_replicates=300, seed=sample)
        low, high = interval(replicates[0])
        inside += low <= truth <= high
    assert 180 <= inside <= 198  # 190 expected; each end is 2.5 binomial standard deviations off


def test_poisson_weights_have_mean_and_variance_one():
    weights = np.concatenate(list(_poisson_weights(50_000, 40, 0)))
    assert weights.shape == (40, 50_000)
    assert weights.mean() == pytest.approx(1.0, abs=3e-3)
    assert weights.var() == pytest.approx(1.0, abs=6e-3)
    assert set(np.unique(weights)) <= set(range(12))


def test_means_over_many_and_few_examples(monkeypatch):
    values = np.stack([np.random.default_rng(0).uniform(size=4000), np.arange(4000) % 2])
    exact = mean_replicates(values)
    monkeypatch.setattr("caskd.eval.stats.bootstrap.EXACT_UP_TO", 100)
    linear = mean_replicates(values)
    expected = values.std(axis=1) / np.sqrt(4000)
    for replicates in (exact, linear):
        np.testing.assert_allclose(replicates.mean(axis=1), values.mean(axis=1), atol=2e-3)
        np.testing.assert_allclose(replicates.std(axis=1), expected, rtol=0.08)


def test_seeds_widen_the_interval(compare_arms):
    # The first arm's seeds are far apart, the second's are equal.
    large = np.ones(500)
    good, bad = (cascade(seed, 500, skill=skill)[:2] for seed, skill in ((1, 0.9), (2, 0.5)))
    same = cascade(3, 500, skill=0.7)[:2]

    def difference(ours, theirs):
        [contrast] = compare_arms({"ours": ours, "theirs": theirs}, large)
        return contrast.difference

    apart = difference([good, bad, good, bad], [same] * 4)
    alike = difference([good] * 4, [same] * 4)
    alone = difference([good], [same])
    assert (apart.num_seeds, alike.num_seeds, alone.num_seeds) == (4, 4, 1)
    assert (alike.low, alike.high) == pytest.approx((alone.low, alone.high), abs=1e-12)
    assert apart.high - apart.low > 2 * (alike.high - alike.low)
    areas = [deferral_curve(*series, large).audc for series in (good, bad, same)]
    assert apart.value == pytest.approx((areas[0] + areas[1]) / 2 - areas[2])


def test_seeds_are_redrawn_in_pairs_where_both_arms_have_as_many():
    # Each seed moves both arms alike: paired, nothing is left of it.
    seeds = np.array([0.5, 0.6, 0.7, 0.8])
    replicates = np.repeat(seeds[:, None], 400, axis=1)
    paired = arm_difference((seeds + 0.01, replicates + 0.01), (seeds, replicates))
    assert (paired.low, paired.high) == pytest.approx((0.01, 0.01))
    assert paired.verdict == "the first is better"
    unequal = arm_difference((seeds + 0.01, replicates + 0.01), (seeds[:3], replicates[:3]))
    assert unequal.low < 0.0 < unequal.high
    assert unequal.num_seeds == 3
