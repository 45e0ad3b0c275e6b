"""Learning rate and objective are functions of the step."""

import math

import pytest

from caskd.train.objectives import OBJECTIVES, Objective
from caskd.train.run.schedule import lr_at, objective_at, widest_read

STEPS, WARMUP = 100, 10
FALLING = ("cosine", "linear", "wsd")


@pytest.mark.parametrize("schedule", [*FALLING, "constant"])
def test_every_schedule_warms_up_and_ends_where_it_says(schedule: str) -> None:
    rates = [
        lr_at(step, peak=2.0, steps=STEPS, warmup_steps=WARMUP, schedule=schedule)  # type: ignore[arg-type]
        for step in range(STEPS)
    ]
    assert rates[:WARMUP] == pytest.approx([2.0 * (i + 1) / WARMUP for i in range(WARMUP)])
    assert max(rates) == rates[WARMUP - 1] == 2.0
    assert rates[-1] == pytest.approx(2.0 if schedule == "constant" else 0.2)
    assert all(a >= b for a, b in zip(rates[WARMUP:], rates[WARMUP + 1 :], strict=False))


def test_shapes() -> None:
    def rate(schedule: str, step: int) -> float:
        return lr_at(step, peak=1.0, steps=101, warmup_steps=0, schedule=schedule)  # type: ignore[arg-type]

    assert rate("linear", 50) == pytest.approx(0.55)
    assert rate("cosine", 25) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2)
    assert rate("wsd", 80) == 1.0
    assert rate("wsd", 90) == pytest.approx(0.55)


def test_wsd_falls_over_the_steps_that_it_is_given() -> None:
    rates = [
        lr_at(step, peak=1.0, steps=50, warmup_steps=5, schedule="wsd", decay_steps=5)
        for step in range(50)
    ]
    assert rates[4:45] == [1.0] * 41
    assert rates[45:] == pytest.approx([0.82, 0.64, 0.46, 0.28, 0.1])


@pytest.mark.parametrize("schedule", [*FALLING, "constant"])
@pytest.mark.parametrize("warmup_steps", [0, 1])
def test_a_run_of_one_step_is_at_its_peak(schedule: str, warmup_steps: int) -> None:
    rate = lr_at(0, peak=3.0, steps=1, warmup_steps=warmup_steps, schedule=schedule)  # type: ignore[arg-type]
    assert rate == 3.0


def test_the_objective_starts_plain_and_its_weight_moves() -> None:
    at = [
        objective_at(step, objective=OBJECTIVES["cat-dist"], steps=5, mask_from_step=2, final_w=1.0)
        for step in range(5)
    ]
    assert [objective.rule for objective in at] == ["all", "all", "either", "either", "either"]
    assert [objective.w for objective in at] == [0.5, 0.625, 0.75, 0.875, 1.0]


def test_by_default_the_objective_stays() -> None:
    for objective in OBJECTIVES.values():
        for step in (0, 3, 9):
            same = objective_at(step, objective=objective, steps=10, mask_from_step=0, final_w=None)
            assert same == objective


def test_what_is_read_suits_every_step() -> None:
    """A run that ends with the teacher's term needs its distribution from the first step on."""
    assert widest_read(Objective("either", 1.0), 0.5).needs_distribution
    assert widest_read(Objective("either", 0.5), 1.0).needs_distribution
    assert not widest_read(Objective("either", 1.0), None).needs_distribution
