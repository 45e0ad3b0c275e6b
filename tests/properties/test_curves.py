"""Exact properties of the deferral curve, against a definition written out example by example."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caskd.eval import deferral_curve
from caskd.eval.curves.deferral import deferred_mean
from caskd.eval.stats.bootstrap import WeightedArea

ARRAYS = ("deferral_rate", "quality", "threshold", "a1", "a2", "random")
NUMBERS = ("audc", "random_audc", "oracle_audc")

qualities = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(-1.0, 2.0, width=32))
scores = st.one_of(st.integers(-2, 2).map(float), st.floats(-1e3, 1e3, width=32))
examples = st.lists(st.tuples(scores, qualities, qualities), min_size=1, max_size=30)


def columns(rows):
    score, small, large = (np.array(column) for column in zip(*rows, strict=True))
    return score, small, large


def brute_force(score, small, large):
    """Every threshold in turn, every example in turn: O(E^2)."""
    points = []
    for threshold in [np.inf, *sorted(set(score.tolist()), reverse=True)]:
        deferred = [s >= threshold for s in score]
        kept = sum(q for q, d in zip(small, deferred, strict=True) if not d)
        taken = sum(q for q, d in zip(large, deferred, strict=True) if d)
        points.append(
            (sum(deferred) / len(score), threshold, kept / len(score), taken / len(score))
        )
    return points


def trapezoid(points):
    return sum((x1 - x0) * (y0 + y1) / 2 for (x0, y0), (x1, y1) in pairwise(points))


@given(examples)
def test_agrees_with_the_definition(rows):
    score, small, large = columns(rows)
    curve = deferral_curve(score, small, large)
    expected = brute_force(score, small, large)
    np.testing.assert_array_equal(curve.deferral_rate, [p[0] for p in expected])
    np.testing.assert_array_equal(curve.threshold, [p[1] for p in expected])
    np.testing.assert_allclose(curve.a1, [p[2] for p in expected], atol=1e-12)
    np.testing.assert_allclose(curve.a2, [p[3] for p in expected], atol=1e-12)
    area = trapezoid([(rate, a1 + a2) for rate, _, a1, a2 in expected])
    assert curve.audc == pytest.approx(area, abs=1e-12)


@given(examples)
def test_end_points_and_parts(rows):
    score, small, large = columns(rows)
    curve = deferral_curve(score, small, large)
    assert curve.deferral_rate[0] == 0.0
    assert curve.deferral_rate[-1] == 1.0
    assert curve.quality_small == pytest.approx(small.mean(), abs=1e-14)
    assert curve.quality_large == pytest.approx(large.mean(), abs=1e-14)
    assert curve.a1[-1] == 0.0
    assert curve.a2[0] == 0.0
    np.testing.assert_array_equal(curve.a1 + curve.a2, curve.quality)


@given(examples, st.randoms(use_true_random=False))
def test_permuting_the_examples_changes_no_bit(rows, random):
    curve = deferral_curve(*columns(rows))
    shuffled = list(rows)
    random.shuffle(shuffled)
    again = deferral_curve(*columns(shuffled))
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(curve, name), getattr(again, name))
    for name in NUMBERS:
        assert getattr(curve, name) == getattr(again, name)


@given(examples)
def test_oracle_is_the_best_score_and_random_the_mean(rows):
    score, small, large = columns(rows)
    curve = deferral_curve(score, small, large)
    oracle = deferral_curve(large - small, small, large)
    assert oracle.audc == curve.oracle_audc
    np.testing.assert_array_equal(oracle.quality, curve.oracle_quality)
    assert curve.audc <= curve.oracle_audc + 1e-12
    assert curve.random_audc == pytest.approx((small.mean() + large.mean()) / 2, abs=1e-12)


@given(examples)
def test_reversing_the_score_mirrors_the_area_around_random(rows):
    score, small, large = columns(rows)
    forward, backward = (deferral_curve(s, small, large).audc for s in (score, -score))
    assert forward + backward == pytest.approx(small.mean() + large.mean(), abs=1e-12)


@given(examples)
def test_monotone_transforms_of_the_score_change_nothing_but_thresholds(rows):
    score, small, large = columns(rows)
    ranks = np.unique(score, return_inverse=True)[1]
    np.testing.assert_array_equal(
        deferral_curve(score, small, large).quality, deferral_curve(ranks, small, large).quality
    )


@given(examples, st.floats(0.0, 1.0))
def test_rate_for_inverts_quality_at(rows, rate):
    curve = deferral_curve(*columns(rows))
    found = curve.rate_for(curve.quality_at(rate))
    assert found is not None
    assert found <= rate + 1e-6 or curve.quality_at(found) == pytest.approx(
        curve.quality_at(rate), abs=1e-9
    )


@given(examples)
def test_deferred_mean_of_the_large_quality_is_a2(rows):
    score, small, large = columns(rows)
    curve = deferral_curve(score, small, large)
    np.testing.assert_allclose(deferred_mean(score, large), curve.a2, atol=1e-12)


@settings(max_examples=50)
@given(examples, st.randoms(use_true_random=False))
def test_a_weighted_area_is_the_area_of_the_repeated_examples(rows, random):
    score, small, large = columns(rows)
    picks = np.array([random.randrange(len(rows)) for _ in rows])
    weights = np.bincount(picks, minlength=len(rows))[None]
    area = WeightedArea(score, small, large)(weights)
    assert area[0] == pytest.approx(
        deferral_curve(score[picks], small[picks], large[picks]).audc, abs=1e-9
    )
