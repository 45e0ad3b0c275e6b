"""Deferral curves worked out by hand, and what is refused."""

import numpy as np
import pytest

from caskd.eval import deferral_curve
from caskd.store.errors import UsageError


def test_a_curve_worked_out_by_hand():
    curve = deferral_curve([3.0, 1.0, 2.0, 0.0], [0, 1, 0, 1], [1, 1, 0, 1])
    assert curve.deferral_rate.tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert curve.threshold.tolist() == [np.inf, 3.0, 2.0, 1.0, 0.0]
    assert curve.quality.tolist() == [0.5, 0.75, 0.75, 0.75, 0.75]
    assert curve.a1.tolist() == [0.5, 0.5, 0.5, 0.25, 0.0]
    assert curve.a2.tolist() == [0.0, 0.25, 0.25, 0.5, 0.75]
    assert curve.audc == 0.71875
    assert curve.random_audc == 0.625
    assert curve.apgr == pytest.approx(0.875)
    assert curve.percent_over_random == pytest.approx(15.0)
    assert curve.oracle_rate.tolist() == [0.0, 0.25, 1.0]
    assert curve.oracle_audc == 0.71875


def test_the_ends_are_the_exact_means():
    # Ten times 0.1, added one by one, is 0.9999999999999999.
    quality = np.full(10, 0.1)
    assert np.cumsum(quality)[-1] != 1.0
    curve = deferral_curve(np.arange(10), quality, quality)
    assert (curve.quality_small, curve.quality_large) == (0.1, 0.1)
    assert (curve.a1[0], curve.a2[-1]) == (0.1, 0.1)


def test_equal_scores_are_deferred_together():
    curve = deferral_curve([1.0, 1.0, 1.0, 0.0], [0, 0, 1, 1], [1, 0, 1, 1])
    assert curve.deferral_rate.tolist() == [0.0, 0.75, 1.0]
    assert curve.quality.tolist() == [0.5, 0.75, 0.75]


def test_a_constant_score_is_the_random_line():
    curve = deferral_curve(np.zeros(5), [0, 1, 0, 1, 0], [1, 1, 0, 1, 1])
    assert curve.audc == curve.random_audc
    assert curve.quality.tolist() == curve.random.tolist()
    assert curve.apgr == pytest.approx(0.5)


def test_one_example():
    curve = deferral_curve([0.3], [0.0], [1.0])
    assert curve.deferral_rate.tolist() == [0.0, 1.0]
    assert curve.quality.tolist() == [0.0, 1.0]
    assert curve.audc == curve.random_audc == curve.oracle_audc == 0.5


def test_equal_models_leave_nothing_relative_to_say():
    curve = deferral_curve([0.1, 0.2, 0.3], [1, 1, 1], [1, 1, 1])
    assert curve.audc == curve.random_audc == curve.oracle_audc == 1.0
    assert curve.apgr is None
    assert curve.percent_over_random is None


def test_a_small_or_negative_lead_leaves_relative_figures_out():
    small = np.array([1] * 50 + [0] * 50)
    for shift in (46, 54):  # leads of -4 and +4 points
        curve = deferral_curve(np.arange(100), small, np.array([1] * shift + [0] * (100 - shift)))
        assert curve.apgr is None
        assert curve.percent_over_random is None


def test_the_oracle_may_exceed_both_models():
    curve = deferral_curve([0.0, 0.0], [1, 0], [0, 1])
    assert curve.oracle_quality.max() == 1.0
    assert curve.oracle_audc == 0.75
    assert curve.audc == 0.5


def test_true_and_false_are_numbers():
    curve = deferral_curve([1, 0], [False, True], [True, True])
    assert curve.quality.tolist() == [0.5, 1.0, 1.0]


def test_blocks_of_equal_scores_sum_to_the_same_bits_in_any_order():
    generator = np.random.default_rng(0)
    score = generator.integers(0, 3, 1000).astype(float)
    small, large = generator.uniform(size=(2, 1000))
    curve = deferral_curve(score, small, large)
    shuffled = generator.permutation(1000)
    again = deferral_curve(score[shuffled], small[shuffled], large[shuffled])
    assert curve.a1.tolist() == again.a1.tolist()
    assert curve.a2.tolist() == again.a2.tolist()


def test_quality_at_a_rate_and_the_rate_for_a_quality():
    curve = deferral_curve([3.0, 1.0, 2.0, 0.0], [0, 1, 0, 1], [1, 1, 0, 1])
    assert curve.quality_at(0.125) == 0.625
    assert curve.rate_for(0.625) == 0.125
    assert curve.rate_for(0.75) == 0.25
    assert curve.rate_for(0.1) == 0.0
    assert curve.rate_for(0.76) is None
    with pytest.raises(UsageError, match=r"deferral rate 1\.5"):
        curve.quality_at(1.5)
    with pytest.raises(UsageError, match="quality nan"):
        curve.rate_for(float("nan"))


@pytest.mark.parametrize(
    ("score", "small", "large", "message"),
    [
        ([], [], [], r"score: shape is \(0,\)"),
        ([[1.0]], [1.0], [1.0], r"score: shape is \(1, 1\)"),
        ([1.0, 2.0], [1.0], [1.0, 0.0], "2, 1 and 2 values"),
        ([1.0, float("nan")], [1, 1], [1, 1], r"score\[1\] = nan"),
        ([1.0, 2.0], [1, float("inf")], [1, 1], r"small_quality\[1\] = inf"),
        ([1.0, 2.0], [1, 1], [float("nan"), 1], r"large_quality\[0\] = nan"),
        (["a", "b"], [1, 1], [1, 1], "expected numbers"),
    ],
)
def test_refused(score, small, large, message):
    with pytest.raises(UsageError, match=message):
        deferral_curve(score, small, large)
