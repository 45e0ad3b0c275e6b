"""Isotonic calibration: by hand, order-free, and better calibrated on other examples."""

import numpy as np
import pytest

from caskd.eval.curves import calibration_error, isotonic_confidence


def test_violators_are_pooled_and_new_scores_take_the_step_below():
    score = np.array([3.0, 1.0, 2.0, 2.0, 4.0])
    quality = np.array([0.5, 1.0, 0.0, 0.5, 0.0])
    # By score: 1.0, the block 0.25 (weight 2), 0.5, 0.0; the middle two are pooled to 1/3.
    new = np.array([-9.0, 1.0, 1.9, 2.0, 3.5, 4.0, np.finfo(float).max])
    expected = [1.0, 1.0, 1.0, 1 / 3, 1 / 3, 0.0, 0.0]
    assert isotonic_confidence(score, quality, new) == pytest.approx(expected)
    order = [4, 2, 0, 3, 1]
    assert isotonic_confidence(score[order], quality[order], new) == pytest.approx(expected)


def test_it_calibrates_a_score_that_is_no_probability():
    generator = np.random.default_rng(0)
    score = generator.normal(size=4000)
    right = (generator.uniform(size=4000) < 1 / (1 + np.exp(3 * score))).astype(float)
    fit, test = slice(0, 2000), slice(2000, None)
    confidence = isotonic_confidence(score[fit], right[fit], score[test])
    naive = 1 / (1 + np.exp(score[test]))
    assert calibration_error(confidence, right[test]) < 0.05
    assert calibration_error(naive, right[test]) > 0.1
