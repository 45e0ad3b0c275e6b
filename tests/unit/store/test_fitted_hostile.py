"""The fitted encoding of top-k rows: values of a hostile store, and arrays moved by one."""

import numpy as np
import pytest
from helpers import stores
from helpers.fitted_rows import FITTED, SHARD_ROWS, K, V, decoded, toy_rows

from caskd.store.errors import CorruptError


@pytest.mark.parametrize(
    ("name", "value"),
    [("topk_id_places", 2**31), ("topk_id_list", 200), ("topk_logit_steps", 65535)],
)
def test_values_that_lead_nowhere_are_refused(name: str, value: int) -> None:
    stored = FITTED.encode(toy_rows(4), V)
    stored[name] = stored[name].copy()
    stored[name][0] = value
    with pytest.raises(CorruptError, match=name):
        decoded(stored)


@pytest.mark.parametrize(("cell", "value"), [((0, 1), 65_530), ((5, 3), 65_535), ((9, 23), 64_700)])
def test_steps_that_leave_16_bits_and_come_back_are_refused(
    cell: tuple[int, int], value: int
) -> None:
    """The sum of the steps is again a code, or the one before it."""
    rows = stores.row_fields(np.random.default_rng(0).normal(0, 3, (SHARD_ROWS, V)).astype("f4"),
                             np.zeros(SHARD_ROWS, int), K)  # fmt: skip
    stored = FITTED.encode(rows, V)
    steps = stored["topk_logit_steps"].copy()
    before = int(steps[cell[0], : cell[1]].sum())
    steps[cell] = value
    assert (before + value) % 65_536 < 4096
    with pytest.raises(CorruptError, match="topk_logit_steps lead beyond 4,095"):
        decoded({**stored, "topk_logit_steps": steps})


@pytest.mark.parametrize("vocab", [V, 60_000])
def test_places_of_a_run_that_leave_16_bits_are_refused(vocab: int) -> None:
    rows = toy_rows(0, 0.0)  # equal logits: one run of all cells behind the first
    stored = FITTED.encode(rows, vocab)
    stored["topk_id_places"] = np.full_like(stored["topk_id_places"], vocab - 1)
    with pytest.raises(CorruptError, match="topk_id_places lead to"):
        decoded(stored, vocab)


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("topk_id_places", "topk_ids"), ("topk_logit_steps", "topk_logits"),
        ("topk_id_list", "topk_ids"), ("argmax", "topk_ids"), ("label_rest", "label_logit"),
        ("label_rank", "label_logit"), ("tail_steps", "tail_mass"), ("num_kept", "topk_ids"),
        ("logsumexp", "topk_logits"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("axis", [0, 1])
def test_arrays_moved_by_one_row_or_cell_give_other_rows(name: str, field: str, axis: int) -> None:
    stored = FITTED.encode(toy_rows(7), V)
    wanted = decoded(stored)
    if axis >= stored[name].ndim:
        return
    moved = {**stored, name: np.roll(stored[name], 1, axis=axis)}
    try:
        found = decoded(moved)
    except CorruptError:
        return
    assert (found[field] != wanted[field]).any(axis=-1).mean() > 0.05


def test_tail_steps_that_lead_nowhere_are_refused() -> None:
    stored = FITTED.encode(toy_rows(4), V)
    for value in (-5000, 5000):
        stored["tail_steps"][0] = value
        with pytest.raises(CorruptError, match="tail_steps"):
            decoded(stored)
