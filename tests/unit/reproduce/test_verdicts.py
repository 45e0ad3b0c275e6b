"""The rules for verdicts, compared with examples worked out by hand."""

import pytest
from report_stats import (
    binned,
    equivalence,
    mark,
    mark_all,
    needed_seeds,
    smallest_difference,
    t_interval,
    verdict,
)

UP, DOWN, ZERO = (0.01, 0.03), (-0.03, -0.01), (-0.01, 0.03)


@pytest.mark.parametrize(
    ("intervals", "num_seeds", "needed", "expected"),
    [
        ([UP, UP], 10, 5, "above"),
        ([DOWN, DOWN], 5, 5, "below"),
        ([UP, ZERO], 10, 5, "no difference shown"),
        ([ZERO, UP], 10, 5, "no difference shown"),
        ([UP, DOWN], 10, 5, "no difference shown"),
        ([(0.0, 0.1), UP], 10, 5, "no difference shown"),
        ([UP, UP], 4, 5, "undecided (4 seeds)"),
        ([UP, None], 1, 5, "undecided (1 seed)"),
        ([UP, None], 10, 5, "undecided (10 seeds)"),
        ([], 10, 5, "undecided (10 seeds)"),
        ([UP, UP], 3, 3, "above (3 seeds)"),
        ([UP, ZERO], 3, 3, "no difference shown (3 seeds)"),
        ([UP, UP], 2, 3, "undecided (2 seeds)"),
    ],
)
def test_both_intervals_must_agree(intervals, num_seeds, needed, expected):
    assert verdict(intervals, num_seeds, needed) == expected


@pytest.mark.parametrize(
    ("intervals", "expected"),
    [
        ([(-0.009, 0.009), (-0.005, 0.001)], "within 0.01"),
        ([(-0.009, 0.009), (-0.011, 0.001)], "no difference shown"),
        ([(0.011, 0.02), (0.012, 0.02)], "outside 0.01"),
        ([(-0.02, -0.011), (-0.03, -0.012)], "outside 0.01"),
        ([(0.011, 0.02), (-0.02, -0.011)], "no difference shown"),
        ([UP, UP], "no difference shown"),
    ],
)
def test_equivalence_is_within_the_margin(intervals, expected):
    assert equivalence(intervals, 10, 5) == expected
    assert equivalence(intervals, 4, 5) == "undecided (4 seeds)"


def test_side_arms_may_have_fewer_seeds():
    assert needed_seeds(10, primary=True) == needed_seeds(3, primary=True) == 5
    assert needed_seeds(10, primary=False) == 5
    assert needed_seeds(3, primary=False) == 3
    assert needed_seeds(1, primary=False) == 2


@pytest.mark.parametrize(
    ("found", "wanted", "expected"),
    [
        ("above", "above", "reproduced"),
        ("above (3 seeds)", "above", "reproduced"),
        ("below", "above", "contradicted"),
        ("below", "below", "reproduced"),
        ("above", "below", "contradicted"),
        ("no difference shown", "above", "undecided"),
        ("undecided (4 seeds)", "above", "undecided"),
        ("within 0.01", "within 0.01", "reproduced"),
        ("outside 0.01", "within 0.01", "contradicted"),
    ],
)
def test_a_claim_is_marked_by_its_verdict(found, wanted, expected):
    assert mark(found, wanted) == expected


def test_one_contradicted_part_contradicts_a_claim():
    assert mark_all(["reproduced", "reproduced"]) == "reproduced"
    assert mark_all(["reproduced", "undecided"]) == "undecided"
    assert mark_all(["undecided", "contradicted"]) == "contradicted"
    assert mark_all([]) == "undecided"


def test_bins_divide_the_steps_evenly():
    assert binned([1, 2, 3, 4, 5], [1.0, 3.0, 5.0, 7.0, 9.0], 2) == [(1, 3, 3.0), (4, 5, 8.0)]
    assert binned([1, 2], [0.5, 0.7], 4) == [(1, 1, 0.5), (2, 2, 0.7)]
    assert binned([], [], 4) == []


def test_student_s_t_over_seeds():
    # Tables: t at 97.5 % with 2 degrees of freedom is 4.303; the deviation of 1, 2, 3 is 1.
    low, high = t_interval([1.0, 2.0, 3.0])
    assert (low, high) == (
        pytest.approx(2 - 4.303 / 3**0.5, abs=1e-3),
        pytest.approx(4.484, abs=1e-3),
    )
    assert t_interval([1.0]) is None


def test_the_smallest_difference_equals_the_textbook_value():
    # Cohen (1988): a paired t-test of 10 at alpha .05 has power .8 for a shift of .996 deviations.
    assert smallest_difference(1.0, 10) == pytest.approx(0.996, abs=2e-3)
    assert smallest_difference(0.02, 10) == pytest.approx(0.0199, abs=1e-4)
    assert smallest_difference(0.01, 3) > 3 * smallest_difference(0.01, 10)
