"""The calibration split depends on the questions and the seed, and on nothing else."""

import numpy as np
import pytest

from caskd.eval.study.experiment import calibration_mask
from caskd.store.errors import UsageError

NAMES = [f"question {number}" for number in range(2000)]


def test_a_share_of_the_questions():
    marked = calibration_mask(NAMES, 0.3, 0)
    assert abs(marked.mean() - 0.3) < 0.03


def test_neither_order_nor_company_matters():
    marked = calibration_mask(NAMES, 0.3, 0)
    shuffled = np.random.default_rng(0).permutation(len(NAMES))
    again = calibration_mask([NAMES[place] for place in shuffled], 0.3, 0)
    assert again.tolist() == marked[shuffled].tolist()
    assert calibration_mask(NAMES[:700], 0.3, 0).tolist() == marked[:700].tolist()
    assert calibration_mask(["q", "q", *NAMES], 0.3, 0)[:2].tolist() in ([0, 0], [1, 1])


def test_a_larger_share_keeps_what_calibrated_before_and_a_seed_redraws():
    small, large = (calibration_mask(NAMES, share, 0) for share in (0.2, 0.5))
    assert (large | ~small).all()
    other = calibration_mask(NAMES, 0.5, 1)
    assert 0.4 < (other == large).mean() < 0.6


@pytest.mark.parametrize("share", [0.0, 1.0, -1.0, float("nan")])
def test_a_share_that_is_none(share):
    with pytest.raises(UsageError, match="between 0 and 1"):
        calibration_mask(NAMES, share, 0)


def test_an_empty_side():
    with pytest.raises(UsageError, match="leaves one side of 2 examples empty"):
        calibration_mask(["a", "a"], 0.5, 0)
