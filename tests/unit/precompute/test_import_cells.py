"""Cells of another program's rows: order, missing ranks and mass, against a reference by rows."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caskd.precompute.imports.examples import clean_cells, row_counts, row_fields

VALUES = st.sampled_from([-0.125, -0.5, -1.0, -1.5, -2.0, -9.0, 0.25, math.nan, -math.inf])
ROW = st.lists(st.tuples(st.integers(-1, 6), VALUES), min_size=5, max_size=5)


def by_the_book(row: list[tuple[int, float]], vocab_size: int) -> list[tuple[int, float]]:
    """The cells of one row that stay, sorted; not rescaled."""
    best: dict[int, float] = {}
    for id_, value in row:
        if math.isfinite(value) and 0 <= id_ < vocab_size:
            best[id_] = max(value, best.get(id_, -math.inf))
    if sum(map(math.exp, best.values())) > 1.5:
        return []
    return sorted(best.items(), key=lambda cell: (-cell[1], cell[0]))


@settings(max_examples=60, deadline=None)
@given(st.lists(ROW, min_size=1, max_size=6))
def test_cells_are_those_of_the_reference(rows: list[list[tuple[int, float]]]) -> None:
    ids = np.array([[id_ for id_, _ in row] for row in rows])
    values = np.array([[value for _, value in row] for row in rows], np.float32)
    found = clean_cells(ids, values, 6)
    expected: Counter[str] = Counter()
    for n, row in enumerate(rows):
        cells = by_the_book(row, 6)
        kept = found.num_kept[n]
        assert found.ids[n, :kept].tolist() == [id_ for id_, _ in cells]
        assert not found.ids[n, kept:].any()
        total = sum(math.exp(value) for _, value in cells)
        shift = max(0.0, math.log(total)) if cells else 0.0
        np.testing.assert_allclose(
            found.logprobs[n, :kept], [value - shift for _, value in cells], atol=1e-6
        )
        expected["overfull_rows"] += total > 1 + 1e-6
        expected["lost_rows"] += not cells
        expected["cut_rows"] += 0 < len(cells) < sum(id_ >= 0 for id_, _ in row)
        expected["tied_argmax_rows"] += len(cells) > 1 and cells[0][1] == cells[1][1]
    for name in ("overfull_rows", "lost_rows", "cut_rows", "tied_argmax_rows"):
        assert found.counts[name] == expected[name], name


def test_only_rows_out_of_order_are_counted() -> None:
    ids = np.array([[1, 2, 3], [2, 1, 3], [1, 2, 3], [3, 1, 2]])
    values = np.log(np.array([[0.5, 0.3, 0.1], [0.3, 0.3, 0.1], [0.1, 0.3, 0.2], [0.4, 1, 0.2]]))
    values[3, 1] = -np.inf
    found = clean_cells(ids, values.astype(np.float32), 6)
    assert found.counts["resorted_rows"] == 2
    assert found.ids.tolist() == [[1, 2, 3], [1, 2, 3], [2, 3, 1], [3, 2, 0]]


def test_labels_and_tails_are_those_of_the_cells() -> None:
    ids = np.array([[4, 2, 0], [1, 3, 5]])
    values = np.log(np.array([[0.5, 0.25, 0.125], [0.5, 0.2, 0.1]])).astype(np.float32)
    cells = clean_cells(ids, values, 6)
    rows = row_fields(cells, np.array([2, 0]), 4, has_tail=True)
    np.testing.assert_allclose(rows["tail_mass"], [0.125, 0.2], atol=1e-6)
    assert rows["label_rank"].tolist() == [1, 4]
    assert rows["label_logit"].tolist() == [values[0, 1], -np.inf]
    assert rows["argmax"].tolist() == [4, 1]
    assert rows["num_kept"].tolist() == [3, 3]
    assert not rows["logsumexp"].any()
    assert row_counts(rows) == {"capped_rows": 1}
    # A label of id 0 is not the padding behind the kept cells.
    assert row_fields(cells, np.array([2, 0]), 4, has_tail=False)["tail_mass"].tolist() == [0, 0]


@pytest.mark.parametrize("value", [np.nan, 1.0])
def test_a_row_without_a_usable_cell_has_no_teacher(value: float) -> None:
    cells = clean_cells(np.array([[3, 4]]), np.full((1, 2), value, np.float32), 6)
    rows = row_fields(cells, np.array([3]), 2, has_tail=True)
    assert cells.counts["lost_rows"] == 1
    assert {name: rows[name].item() for name in ("num_kept", "tail_mass", "argmax")} == {
        "num_kept": 0, "tail_mass": 0, "argmax": 0,
    }  # fmt: skip
