"""Student's t over training seeds."""

import math

import numpy as np
import pytest
from scipy import stats

from caskd.eval.stats import Difference
from caskd.eval.stats.intervals import SeedInterval, seed_interval


@pytest.mark.parametrize(
    ("num_seeds", "quantile"),
    # As printed in tables of the distribution; 1 and 2 degrees of freedom have closed forms.
    [(2, math.tan(0.475 * math.pi)), (3, 0.95 * math.sqrt(2 / (1 - 0.95**2))), (5, 2.776445105),
     (10, 2.262157163), (30, 2.045229642), (10_001, 1.960201240)],
)  # fmt: skip
def test_the_reach_is_that_of_the_tables(num_seeds, quantile):
    values = np.random.default_rng(num_seeds).normal(size=num_seeds)
    found = seed_interval(values, np.zeros(num_seeds))
    reach = quantile * values.std(ddof=1) / math.sqrt(num_seeds)
    assert (found.high - found.low) / 2 == pytest.approx(reach, rel=1e-8)


def test_a_paired_interval_by_hand():
    # Differences 1, 2, 3: mean 2, standard deviation 1, two degrees of freedom.
    found = seed_interval(np.array([5.0, 7.0, 9.0]), np.array([4.0, 5.0, 6.0]))
    reach = 4.302652729911 / math.sqrt(3)
    assert (found.low, found.high) == pytest.approx((2 - reach, 2 + reach))
    assert found.kind == "paired t"


def test_other_counts_of_seeds_are_taken_for_independent():
    # Variances 1 and 4 over 3 and 2 seeds: 7/3 with (7/3)^2 / ((1/3)^2 / 2 + 2^2 / 1) degrees.
    first, second = np.array([1.0, 2.0, 3.0]), np.array([0.0, 2.0 * math.sqrt(2.0)])
    found = seed_interval(first, second)
    freedom = (7 / 3) ** 2 / (1 / 18 + 4)
    assert 1 < freedom < 2
    reach = stats.t.ppf(0.975, freedom) * math.sqrt(7 / 3)
    middle = 2 - math.sqrt(2)
    assert (found.low, found.high) == pytest.approx((middle - reach, middle + reach))
    assert found.kind == "Welch t"


def test_seeds_that_say_nothing():
    assert seed_interval(np.array([1.0]), np.array([1.0])) is None
    assert seed_interval(np.array([1.0, 2.0]), np.array([1.0])) is None
    same = np.array([0.1, 0.7, 0.3])
    assert seed_interval(same, same) == SeedInterval(0.0, 0.0, "paired t")
    assert seed_interval(np.full(2, 0.5), np.full(3, 0.5)) == SeedInterval(0.0, 0.0, "Welch t")


def test_the_interval_covers_the_truth():
    generator = np.random.default_rng(0)
    inside = 0
    for _ in range(1000):
        both = generator.normal(size=3)  # what a seed does to both arms
        found = seed_interval(both + 0.3 + generator.normal(size=3), both)
        inside += found.low <= 0.3 <= found.high
    assert 925 <= inside <= 975  # 950 expected, 6.9 its standard deviation


def difference(low, high, **more):
    return Difference(value=(low + high) / 2, low=low, high=high, num_replicates=9, seed=0, **more)


def test_both_intervals_must_leave_out_zero():
    clear, unclear = SeedInterval(0.1, 0.3, "paired t"), SeedInterval(-0.1, 0.5, "paired t")
    assert difference(0.1, 0.3).verdict == "the first is better"
    assert difference(0.1, 0.3, over_seeds=clear).verdict == "the first is better"
    assert difference(0.1, 0.3, over_seeds=unclear).verdict == "no difference shown"
    assert difference(-0.1, 0.5, over_seeds=clear).verdict == "no difference shown"
    assert difference(-0.3, -0.1).verdict == "the second is better"


def test_a_lower_cost_is_better():
    assert difference(0.1, 0.3, lower_is_better=True).verdict == "the second is better"
    assert difference(-0.3, -0.1, lower_is_better=True).verdict == "the first is better"
    assert difference(-0.3, 0.1, lower_is_better=True).verdict == "no difference shown"
