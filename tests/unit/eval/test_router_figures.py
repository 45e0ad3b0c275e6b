"""RouterArena's score and RouterBench's AIQ by hand; a model that beats another is found."""

import math

import numpy as np
import pytest

from caskd.eval.curves import aiq, arena_score, dominates


def test_the_arena_score_by_hand():
    # c = 200 * 2**-4 and the range of costs is log2(200 / 0.0044) = 15.4722 octaves.
    cheap = 4 / math.log2(200 / 0.0044)
    assert cheap == pytest.approx(0.258529, abs=1e-6)
    by_hand = 1.1 * 0.8 * cheap / (0.1 * 0.8 + cheap)
    assert arena_score(12.5, 0.8) == pytest.approx(by_hand)
    assert by_hand == pytest.approx(0.67204, abs=1e-5)
    assert arena_score(0.0044, 0.7) == pytest.approx(1.1 * 0.7 / 1.07)
    assert arena_score(200.0, 0.7) == 0.0
    assert arena_score(0.0, 0.7) is None
    assert arena_score(300.0, 0.7) is None
    assert arena_score(1.0, 5.0) is None


def test_aiq_by_hand():
    # The dearest point is worse than the middle one: the hull is flat from there on.
    assert aiq(np.array([1.0, 2.0, 3.0]), np.array([0.5, 0.8, 0.7])) == pytest.approx(
        (0.65 + 0.8) / 2
    )
    # The middle point is below the line between its neighbours: the hull passes above it.
    assert aiq(np.array([3.0, 2.0, 1.0]), np.array([0.9, 0.6, 0.5])) == pytest.approx(0.7)
    # One dominated by a cheaper one at equal cost, and one cost alone.
    assert aiq(np.array([1.0, 1.0, 2.0]), np.array([0.2, 0.5, 0.7])) == pytest.approx(0.6)
    assert aiq(np.array([1.0, 1.0]), np.array([0.2, 0.5])) is None


def test_aiq_is_the_mean_height_of_the_best_mixture_of_two_settings():
    generator = np.random.default_rng(0)
    cost, quality = generator.uniform(1, 5, 30), generator.uniform(0, 1, 30)
    axis = np.linspace(cost.min(), cost.max(), 20_001)
    height = np.zeros(axis.size)
    for i in range(30):
        height = np.maximum(height, np.where(axis >= cost[i], quality[i], 0))
        for j in range(30):
            inside = (axis >= cost[i]) & (axis <= cost[j])
            if cost[i] < cost[j]:
                line = np.interp(axis, [cost[i], cost[j]], [quality[i], quality[j]])
                height = np.maximum(height, np.where(inside, line, 0))
    assert aiq(cost, quality) == pytest.approx(height.mean(), abs=1e-3)


def test_domination():
    assert dominates((1.0, 0.8), (2.0, 0.7))
    assert dominates((1.0, 0.8), (1.0, 0.7))
    assert not dominates((1.0, 0.7), (2.0, 0.8))
    assert not dominates((1.0, 0.7), (1.0, 0.7))
