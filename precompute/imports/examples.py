"""Examples of another program, and their rows in the order and with the fields of a store.

Legend: T tokens of an example, N its rows, w cells of the source, k of the store, V vocabulary.
"""

import hashlib
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from caskd.precompute.rows import Fields, log_prob_fields

Ids = npt.NDArray[np.int64]
Values = npt.NDArray[np.float32]

COUNTS = (
    "cut_rows",
    "lost_rows",
    "resorted_rows",
    "tied_argmax_rows",
    "overfull_rows",
)
"""What is counted of the rows of a source, beside `capped_rows` and `pad_rows`."""
ABSENT = -1
"""Id of a cell that a row of fewer cells does not have."""
_SLACK, _IMPLAUSIBLE = 1e-6, 1.5


@dataclass(frozen=True)
class ForeignExample:
    """An example as its source has it: tokens, and the cells of every row."""

    token_ids: Ids
    """[T]"""
    is_response: npt.NDArray[np.uint8]
    """[T]; the tokens at a position >= 1 have the rows."""
    ids: Ids
    """[N, w]"""
    logprobs: Values
    """[N, w]; a cell that is not finite is missing."""
    task: str = ""
    num_pad_rows: int = 0
    """Rows dropped because they predict padding."""
    num_draws: int = 0
    """Draws of each row, whose `logprobs` are logs of drawn shares; 0: log-probabilities."""


@dataclass(frozen=True)
class Cells:
    """Cells of rows in a store's order; those behind `num_kept` are 0 and -inf."""

    ids: npt.NDArray[np.uint32]
    """[N, w]"""
    logprobs: Values
    """[N, w]"""
    counts: Counter[str]

    @property
    def num_kept(self) -> npt.NDArray[np.int64]:
        """Valid cells of each row [N]."""
        kept: npt.NDArray[np.int64] = np.isfinite(self.logprobs).sum(axis=1)
        return kept


def clean_cells(ids: Ids, logprobs: Values, vocab_size: int) -> Cells:
    """Sort the cells of rows, and remove those that no row can have.

    A cell goes if its value is not finite, its id is outside of the vocabulary, or its id stands
    before it with a larger value. A row of more than probability 1 is rescaled to 1; beyond 1.5 it
    has no meaning and loses all cells.

    Args:
        ids: [N, w].
        logprobs: [N, w].
        vocab_size: V.

    Returns:
        The cells and `COUNTS` of rows: `cut_rows` lost a cell, `lost_rows` all of them,
        `resorted_rows` were not by descending value and ascending id, `tied_argmax_rows` have two
        cells with the largest value, `overfull_rows` were rescaled.
    """
    valid = np.isfinite(logprobs) & (ids >= 0) & (ids < vocab_size)
    valid &= ~_repeated(ids, logprobs, valid)
    with np.errstate(over="ignore"):
        mass = np.where(valid, np.exp(logprobs.astype(np.float64)), 0).sum(axis=1)
    valid &= (mass <= _IMPLAUSIBLE)[:, None]
    given = np.argsort(~valid, axis=1, kind="stable")
    order = _order(ids, logprobs, valid)
    values = np.take_along_axis(np.where(valid, logprobs, -np.inf), order, axis=1)
    found = np.take_along_axis(np.where(valid, ids, 0), order, axis=1)
    before = np.take_along_axis(np.where(valid, ids, 0), given, axis=1)
    kept = valid.sum(axis=1)
    overfull = (kept > 0) & (mass > 1 + _SLACK)
    values[overfull] -= np.log(mass[overfull])[:, None]
    tied = (kept > 1) & (values[:, :1] == values[:, 1:2]).any(axis=1)
    counts = {
        "cut_rows": (kept < (ids != ABSENT).sum(axis=1)) & (kept > 0),
        "lost_rows": kept == 0,
        "resorted_rows": (found != before).any(axis=1),
        "tied_argmax_rows": tied,
        "overfull_rows": overfull,
    }
    numbers = Counter({name: int(rows.sum()) for name, rows in counts.items()})
    return Cells(found.astype(np.uint32), values.astype(np.float32), numbers)


def _order(ids: Ids, logprobs: Values, valid: npt.NDArray[np.bool_]) -> Ids:
    """Positions [N, w] by descending value, then ascending id; invalid cells last."""
    return np.lexsort((ids, np.where(valid, -logprobs, np.inf)), axis=1)


def _repeated(ids: Ids, logprobs: Values, valid: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Valid cells [N, w] whose id stands in a valid cell of larger or equal value, too."""
    by_id = np.lexsort((np.where(valid, -logprobs, np.inf), ids), axis=1)
    sorted_ids = np.take_along_axis(ids, by_id, axis=1)
    known = np.take_along_axis(valid, by_id, axis=1)
    again = np.zeros(ids.shape, bool)
    again[:, 1:] = (sorted_ids[:, 1:] == sorted_ids[:, :-1]) & known[:, 1:] & known[:, :-1]
    repeated = np.zeros(ids.shape, bool)
    np.put_along_axis(repeated, by_id, again, axis=1)
    return repeated


def example_digest(
    token_ids: npt.NDArray[Any], is_response: npt.NDArray[Any], cells: Cells, task: str
) -> bytes:
    """sha256 of an example with its rows; sources are sorted by it."""
    digest = hashlib.sha256(repr((len(token_ids), cells.ids.shape, task)).encode())
    parts = (token_ids.astype("<u4"), is_response.astype(np.uint8), cells.ids, cells.logprobs)
    for part in parts:
        digest.update(np.ascontiguousarray(part).tobytes())
    return digest.digest()


def row_fields(cells: Cells, labels: npt.NDArray[Any], top_k: int, *, has_tail: bool) -> Fields:
    """Row fields [N] and [N, top_k] of cells; the label is known only inside of them.

    Args:
        cells: [N, w].
        labels: [N].
        top_k: k, at least the largest `num_kept`.
        has_tail: the probability outside of the cells is 1 - theirs; otherwise it is unknown.
    """
    width = min(cells.ids.shape[1], top_k)
    ids = np.zeros((len(labels), top_k), np.int64)
    logprobs = np.full((len(labels), top_k), -np.inf, np.float32)
    ids[:, :width], logprobs[:, :width] = cells.ids[:, :width], cells.logprobs[:, :width]
    hits = (ids == labels.astype(np.int64)[:, None]) & np.isfinite(logprobs)
    inside, rank = hits.any(axis=1), hits.argmax(axis=1)
    label = np.take_along_axis(logprobs, rank[:, None], axis=1)[:, 0]
    rows = log_prob_fields(
        ids, logprobs, np.where(inside, label, -np.inf), np.where(inside, rank, top_k), 1.0
    )
    if not has_tail:
        rows["tail_mass"][:] = 0
    lost = rows["num_kept"] == 0
    for name in ("label_logit", "tail_mass", "argmax", "label_rank"):
        rows[name][lost] = 0
    return rows


def row_counts(rows: Fields) -> Counter[str]:
    """`capped_rows` of row fields: rows whose label is not among the cells."""
    unknown = np.isneginf(rows["label_logit"]) & (rows["num_kept"] > 0)
    return Counter({"capped_rows": int(unknown.sum())})
