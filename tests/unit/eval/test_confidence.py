"""Measures of a score and of two systems, against other people's or written-out ones."""

import itertools
import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from caskd.eval.curves import aurc, auroc, calibration_error
from caskd.eval.stats import mcnemar


def outcomes(seed, count=300):
    generator = np.random.default_rng(seed)
    quality = (generator.uniform(size=count) < 0.6).astype(float)
    return np.round(generator.normal(size=count) - quality, 1), quality  # with many ties


@pytest.mark.parametrize("seed", range(5))
def test_auroc_is_scikit_learns(seed):
    score, quality = outcomes(seed)
    assert auroc(score, quality) == pytest.approx(roc_auc_score(quality < 0.5, score), abs=1e-12)


def test_auroc_needs_both_kinds():
    assert auroc(np.arange(3.0), np.ones(3)) is None
    assert auroc(np.arange(3.0), np.zeros(3)) is None


def test_aurc_is_the_mean_over_all_orders_of_equal_scores():
    score, quality = np.array([1.0, 0.0, 1.0, 1.0, 2.0]), np.array([0.0, 1.0, 1.0, 0.5, 0.0])
    found = []
    for order in itertools.permutations(range(5)):
        if all(score[a] <= score[b] for a, b in itertools.pairwise(order)):
            risk = np.cumsum(1.0 - quality[list(order)]) / np.arange(1, 6)
            found.append(risk.mean())
    assert len(found) == math.factorial(3)
    assert aurc(score, quality) == pytest.approx(np.mean(found), abs=1e-12)


def test_the_order_of_the_examples_changes_nothing():
    score, quality = outcomes(0)
    shuffled = np.random.default_rng(1).permutation(score.size)
    assert auroc(score, quality) == auroc(score[shuffled], quality[shuffled])
    assert aurc(score, quality) == aurc(score[shuffled], quality[shuffled])


def test_calibration_error_by_hand():
    confidence = np.array([0.95, 0.95, 0.1, 1.0, 0.0])
    quality = np.array([1.0, 0.0, 0.0, 1.0, 0.0])
    # Bins of 1/15: the two at .95 with the one at 1, the one at .1, the one at 0.
    expected = (abs(0.95 + 0.95 + 1.0 - 2.0) + 0.1 + 0.0) / 5
    assert calibration_error(confidence, quality) == pytest.approx(expected)
    assert calibration_error(np.array([0.5, 0.5]), np.array([0.0, 1.0])) == 0.0


def naive_p_value(fewer, trials):
    return min(1.0, 2 * sum(math.comb(trials, k) for k in range(fewer + 1)) / 2**trials)


@pytest.mark.parametrize(
    ("only_first", "only_second"), [(0, 0), (5, 0), (3, 17), (10, 10), (40, 61), (4700, 5300)]
)
@pytest.mark.slow
def test_mcnemar_is_the_exact_binomial_test(only_first, only_second):
    first = np.repeat([1.0, 0.0, 1.0, 0.0], [only_first, only_second, 7, 3])
    second = np.repeat([0.0, 1.0, 1.0, 0.0], [only_first, only_second, 7, 3])
    found = mcnemar(first, second)
    assert (found.only_first, found.only_second) == (only_first, only_second)
    expected = naive_p_value(min(only_first, only_second), only_first + only_second)
    assert found.p_value == pytest.approx(expected, rel=1e-9)


def test_mcnemar_in_words():
    better, worse = np.ones(20), np.array([1.0] * 10 + [0.0] * 10)
    assert mcnemar(better, worse).verdict == "the first is better"
    assert mcnemar(worse, better).verdict == "the second is better"
    assert mcnemar(worse, worse).verdict == "no difference shown"
