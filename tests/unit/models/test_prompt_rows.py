"""Cells of a server's answer become rows in caskd's own order, or are refused."""

import math

import numpy as np
import pytest

from caskd.models.engines import CLAMPED, NonFiniteError
from caskd.models.engines.prompt_rows import ordered_rows
from caskd.store.errors import TeacherError

LOG = {p: math.log(p) for p in (0.05, 0.1, 0.2, 0.3, 0.4)}


def test_rows_by_hand() -> None:
    rows = [
        {7: LOG[0.1], 2: LOG[0.4], 5: LOG[0.3]},  # the label 7 is behind the two best
        {1: LOG[0.2], 9: LOG[0.4]},  # the label 9 is the best
        {8: LOG[0.2], 3: LOG[0.2], 6: LOG[0.4]},  # 3 ties with 8 and goes first
    ]
    found = ordered_rows(rows, [7, 9, 8], 2, 10)
    assert found.ids.tolist() == [[2, 5], [9, 1], [6, 3]]
    assert found.label_ranks.tolist() == [2, 0, 2]
    np.testing.assert_allclose(np.exp(found.label_logprobs), [0.1, 0.4, 0.2], rtol=1e-6)
    np.testing.assert_allclose(np.exp(found.logprobs[0]), [0.4, 0.3], rtol=1e-6)


def test_a_tied_label_takes_the_place_of_a_higher_id() -> None:
    found = ordered_rows([{3: LOG[0.2], 8: LOG[0.2], 6: LOG[0.4]}], [3], 2, 10)
    assert (found.ids.tolist(), found.label_ranks.tolist()) == ([[6, 3]], [1])


def test_padded_columns_are_left_out() -> None:
    rows = [
        {12: LOG[0.4], 3: LOG[0.3], 5: LOG[0.2], 7: LOG[0.05]},  # the label 7 is behind the three
        {1: LOG[0.4], 11: LOG[0.3], 5: LOG[0.2]},
    ]
    found = ordered_rows(rows, [7, 5], 3, 10, 13)
    assert found.ids[:, :2].tolist() == [[3, 5], [1, 5]]
    assert np.isfinite(found.logprobs).sum(axis=1).tolist() == [2, 2]
    assert found.label_ranks.tolist() == [3, 1]
    with pytest.raises(TeacherError, match=r"names id 12.*12 columns"):
        ordered_rows(rows, [7, 5], 3, 10, 12)


def test_clamped_values_are_minus_infinity_in_cells_alone() -> None:
    found = ordered_rows([{1: 0.0, 2: CLAMPED}], [2], 2, 10)
    assert found.logprobs.tolist() == [[0.0, -np.inf]]
    assert found.label_logprobs.tolist() == [CLAMPED]


@pytest.mark.parametrize(
    ("cells", "label", "problem"),
    [
        ({1: -1.0, 2: -2.0}, 3, "lacks its own token 3"),
        ({1: -1.0}, 1, "1 cells"),
        ({1: -2.0, 2: -2.0, 3: -2.0, 4: -3.0}, 1, "4 cells"),
        ({1: -1.0, 10: -2.0}, 1, "names id 10"),
        ({1: -1.0, -1: -2.0}, 1, "names id"),
        ({1: -0.1, 2: -0.5}, 1, "add up to 1.51"),
        ({1: 3.0, 2: -0.5}, 1, "add up to"),
    ],
)
def test_what_is_no_row_is_refused(cells: dict[int, float], label: int, problem: str) -> None:
    with pytest.raises(TeacherError, match=problem):
        ordered_rows([cells], [label], 2, 10)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_is_no_error_of_the_server(value: float) -> None:
    with pytest.raises(NonFiniteError):
        ordered_rows([{1: value, 2: -1.0}], [1], 2, 10)
