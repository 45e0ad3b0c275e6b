"""The teacher's top-k in the student's ids: against a dictionary of bytes."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from caskd.train.data import AlignedExample
from caskd.train.data.mapped_topk import NO_ID, map_topk, shared_ids
from caskd.train.data.span_batches import SpanExample, _with_topk

TEACHER = [b"a", b"b", b"ab", b"", b"</s>", b"a", b"</s>", b"x", b"end"]
STUDENT = [b"end", b"b", b"a", b"</s>", b"", b"a", b"x", b"<eos>"]
TABLE = shared_ids((TEACHER, {4, 8}), (STUDENT, {0, 7}), last_choice={2}, ends={4: 7})


def test_tokens_of_equal_bytes_share_an_id() -> None:
    # Both b"a" are the id that is no last choice; text and special tokens never match.
    assert TABLE.tolist() == [5, 1, NO_ID, NO_ID, 7, 5, 3, 6, 0]


def rows(seed: int, num_rows: int, num_cells: int) -> tuple[np.ndarray, ...]:
    """Random rows: ids, log-probabilities, cells that count, tail."""
    rng = np.random.default_rng(seed)
    ids = np.array([rng.permutation(len(TEACHER))[:num_cells] for _ in range(num_rows)])
    logits = np.log(rng.dirichlet(np.ones(num_cells + 1), num_rows))
    num_kept = rng.integers(1, num_cells + 1, num_rows)
    kept = np.arange(num_cells) < num_kept[:, None]
    tail = 1 - np.where(kept, np.exp(logits[:, :-1]), 0).sum(1)
    return ids.astype(np.uint32), np.where(kept, logits[:, :-1], -np.inf), num_kept, tail


@pytest.mark.parametrize("seed", range(5))
def test_mass_is_added_up_by_bytes(seed: int) -> None:
    ids, log_mass, num_kept, tail = rows(seed, 40, 6)
    mapped = map_topk(ids, log_mass, num_kept, tail, TABLE)
    for row in range(len(ids)):
        wanted: dict[int, float] = {}
        rest = tail[row]
        for cell in range(num_kept[row]):
            own, mass = int(TABLE[ids[row, cell]]), float(np.exp(log_mass[row, cell]))
            if own == NO_ID:
                rest += mass
            else:
                wanted[own] = wanted.get(own, 0) + mass
        count = mapped.num_kept[row]
        found = dict(zip(mapped.ids[row, :count], mapped.mass[row, :count], strict=True))
        assert found == pytest.approx(wanted)
        assert mapped.tail_mass[row] == pytest.approx(rest)
        assert not mapped.mass[row, count:].any()
    assert (mapped.mass.sum(1) + mapped.tail_mass) == pytest.approx(1)


def test_rounded_cells_are_scaled_to_the_rest_of_the_tail() -> None:
    mass = np.log(np.array([[0.5, 0.3]]))
    mapped = map_topk(np.array([[0, 1]], np.uint32), mass, np.array([2]), np.array([0.1]), TABLE)
    assert mapped.mass[0] == pytest.approx([0.9 * 3 / 8, 0.9 * 5 / 8])
    assert mapped.ids[0].tolist() == [1, 5]
    assert mapped.tail_mass[0] == pytest.approx(0.1)


def test_only_rows_of_one_token_on_both_sides_have_a_topk() -> None:
    """Rows: a and a; ab and a, b; x and x; b and another token, as with an inserted space."""
    labels = np.array([0, 2, 7, 1])
    aligned = AlignedExample(
        token_ids=np.array([1, 5, 5, 1, 6, 3], np.uint32),
        is_response=np.array([0, 1, 1, 1, 1, 1], np.uint8),
        student_span=np.array([0, 1, 1, 2, 3]),
        teacher_span=np.array([0, 1, 2, 3]),
        num_spans=4,
        num_bytes=5,
    )
    ids, _, num_kept, tail = rows(0, 6, 4)
    num_kept[:] = 4
    columns: dict[str, Any] = {
        "topk_ids": ids, "topk_logits": np.log(np.full(ids.shape, 0.2)), "num_kept": num_kept,
        "tail_mass": np.full(6, 0.2), "logsumexp": np.zeros(6),
        "labels": np.append([9, 9], labels),
    }  # fmt: skip
    batch: Any = SimpleNamespace(**columns, column=columns.get)
    example = SpanExample(aligned, np.zeros(4), np.ones(4, bool))
    found = _with_topk(example, batch, 2, SimpleNamespace(shared_ids=TABLE))  # type: ignore[arg-type]
    assert found.mapped_rows.tolist() == [0, 3]
    wanted = map_topk(
        ids[[2, 4]], np.log(np.full((2, 4), 0.2)), num_kept[:2], tail[:2] * 0 + 0.2, TABLE
    )
    assert (found.mapped.ids == wanted.ids).all()
    assert found.mapped.mass == pytest.approx(wanted.mass)
