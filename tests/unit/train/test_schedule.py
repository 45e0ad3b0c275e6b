"""The learning rate is a pure function of the step."""

import itertools

import pytest

from caskd.train.schedule import lr_at


def test_warm_up_is_linear_and_reaches_the_peak() -> None:
    rates = [lr_at(s, peak=4.0, steps=10, warmup_steps=4) for s in range(10)]
    assert rates[:4] == [1.0, 2.0, 3.0, 4.0]
    assert all(a > b for a, b in itertools.pairwise(rates[3:]))
    assert rates[-1] == pytest.approx(0.4)


def test_cosine_is_half_way_down_in_the_middle() -> None:
    assert lr_at(0, peak=1.0, steps=11, warmup_steps=0) == 1.0
    assert lr_at(5, peak=1.0, steps=11, warmup_steps=0) == pytest.approx(0.55)


@pytest.mark.parametrize("warmup_steps", [0, 1])
def test_a_single_step_has_the_peak(warmup_steps: int) -> None:
    assert lr_at(0, peak=1.0, steps=1, warmup_steps=warmup_steps) == 1.0
