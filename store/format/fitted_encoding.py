"""The fitted encoding of top-k rows: lists of ids that are fitted to each shard, no padding.

Legend: N rows of a chunk, k cells per row, V vocabulary, C lists of M ids.

* The first id of a row is the teacher's argmax, and stored nowhere else. The others follow by
  descending stored log-probability, ties by ascending id.
* An id is stored as its place in the list of the row's group (store/cells/id_lists.py). Cells of
  equal stored log-probability, the first cell aside, are stored by ascending place: the first
  place, then the differences less 1. Cells stand by rank, then by row: a reader adds the
  differences of all rows at once.
* Log-probabilities are quantised with steps of up to 1/2 nat (see log_probabilities.py).
* `tail_mass` is quantised in the same way, and stored as the difference from the code of 1 minus
  the sum of the decoded cells. That sum is one of integers, so that a reader finds the same code.
* `logsumexp` is rounded to 1/16. `topk_logits` and `label_logit` move with it, so that
  log-probabilities do not depend on it.
* The label's log-probability is exact where the label is outside the cells. Inside, it is stored
  as the difference from its cell's, to 2^-8 nat.
"""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from caskd.store.cells import (
    MAX_CODE,
    IdLists,
    ListPlaces,
    ListShape,
    all_kept,
    blank,
    check_places,
    fit_lists,
    from_front,
    ids_of_places,
    kept_cells,
    log_probability_codes,
    log_probability_table,
    logits_of_codes,
    num_places,
    octaves,
    run_sums,
    sum_of_steps,
    to_front,
)
from caskd.store.errors import CorruptError
from caskd.store.format.codecs import Array
from caskd.store.format.layout import CELL_CHUNK, ArrayLayout
from caskd.store.format.rows import TOPK, Derived, RowArray, RowEncoding

MAX_STEP = 1 / 2
LSE_STEPS = 16  # of logsumexp, per nat
LABEL_STEPS = 128  # of the label's difference from its cell, per nat
_ONE = 1 << 31
LOG_P = log_probability_table(MAX_STEP).astype(np.float32)
_MASS = np.rint(np.exp(log_probability_table(MAX_STEP)) * _ONE).astype(np.uint32)  # of each code
_RISING = _MASS[::-1].astype(np.int64)
_CODE_BITS = 12


class FittedTopK(RowEncoding):
    """Ids as places in lists that the shard holds, values as steps in octaves of ranks."""

    kind = TOPK
    name = "fitted2"
    exact = False
    cell_bytes = (1.0, 1.9)
    cell_arrays = (
        RowArray("topk_id_places", "uint32", "ranks", field="topk_ids"),
        RowArray("topk_id_list", "uint8", "shuffled", is_column=True),
        RowArray("topk_logit_steps", "uint16", "octaves", field="topk_logits"),
    )
    derived = MappingProxyType(
        {
            "topk_codes": Derived("uint16", ("topk_logit_steps", "num_kept")),
            "topk_id_table": Derived("uint32", ("topk_id_lists", "topk_id_common"), of_shard=True),
        }
    )
    sources = MappingProxyType(
        {
            "topk_ids": (
                "topk_id_places", "topk_id_list", "topk_codes", "topk_id_table", "topk_id_lists",
                "argmax", "num_kept",
            ),
            "topk_logits": ("topk_codes", "num_kept", "logsumexp"),
            "label_logit": ("topk_codes", "num_kept", "label_rank", "label_rest", "logsumexp"),
            "tail_mass": ("topk_codes", "num_kept", "tail_steps"),
        }
    )  # fmt: skip

    @property
    def columns(self) -> tuple[RowArray, ...]:
        """The columns of the kind, with the label and the tail as differences."""
        return (
            *(array for array in self.kind.columns if array.name not in self.sources),
            RowArray("label_rest", "float32", "packed", is_column=True, field="label_logit"),
            RowArray("tail_steps", "int16", "packed", is_column=True, field="tail_mass"),
        )

    def tables(self, vocab_size: int, shard_rows: int) -> tuple[ArrayLayout, ...]:
        """The lists and the head of the common order."""
        shape = ListShape.of(shard_rows, vocab_size)
        size = shape.num_lists
        return (
            ArrayLayout("topk_id_lists", "uint32", size, size, "octaves", shape.length),
            ArrayLayout("topk_id_common", "uint32", 1, 1, "octaves", shape.common),
        )

    def derived_shape(
        self, name: str, num_cells: int, chunk_rows: int, tables: Mapping[str, tuple[int, ...]],
        vocab_size: int,
    ) -> tuple[int, ...]:  # fmt: skip
        """Shape of an intermediate array of one chunk or shard."""
        if name == "topk_codes":
            return num_cells, chunk_rows
        return (IdLists.table_size(tables["topk_id_lists"], vocab_size),)

    def encode(self, rows: Mapping[str, Array], vocab_size: int) -> dict[str, Array]:
        """The arrays on disk of a shard."""
        ids, num_kept, lse = rows["topk_ids"], rows["num_kept"], rows["logsumexp"]
        num_rows, top_k = ids.shape
        shape = ListShape.of(num_rows, vocab_size)
        own = ListShape.of(int(np.count_nonzero(num_kept)), vocab_size)
        lists, group = fit_lists(ids, num_kept, vocab_size, shape, own)
        list_steps, common_steps = lists.stored(shape)
        listed = ListPlaces(lists)
        places = np.zeros((top_k, num_rows), np.uint32)
        steps = np.empty((top_k, num_rows), np.uint16)
        rest, tail = np.empty(num_rows, np.float32), np.empty(num_rows, np.int16)
        for start in range(0, num_rows, CELL_CHUNK):  # chunk by chunk
            block = slice(start, start + CELL_CHUNK)
            cells = kept_cells(num_kept[block], top_k)
            log_p = rows["topk_logits"][block] - lse[block, None]
            codes, differences = value_steps(log_p, cells)
            part = listed.of(ids[block], group[block])
            tied = _tied_steps(part, codes, cells)[:, 1:]
            places[:-1, block] = to_front(tied.T, cells.T[1:], [(0, top_k - 1)])
            steps[:, block] = to_front(differences, cells.T, octaves(top_k))
            label = rows["label_logit"][block] - lse[block]
            rest[block] = _label_rest(label, rows["label_rank"][block], codes, num_kept[block])
            tail[block] = _tail_steps(rows["tail_mass"][block], codes, num_kept[block])
        return {
            **{name: rows[name] for name in ("num_kept", "argmax", "label_rank")},
            "logsumexp": np.rint(lse * np.float32(LSE_STEPS)) / np.float32(LSE_STEPS),
            "topk_id_places": places.T,
            "topk_id_list": group,
            "topk_logit_steps": steps.T,
            "label_rest": rest,
            "tail_steps": tail,
            "topk_id_lists": list_steps,
            "topk_id_common": common_steps,
        }

    def decode(
        self, name: str, stored: Mapping[str, Array], id_orders: Array | None, out: Array
    ) -> None:
        """Decode a field, or an intermediate array, of one chunk."""
        _DECODERS[name](stored, out)


class OldFittedTopK(FittedTopK):
    """The predecessor, which no new store has: places of all cells, by row, then by rank."""

    name = "fitted"
    is_written = False
    cell_arrays = (
        RowArray("topk_id_places", "uint32", "ragged", field="topk_ids"),
        *FittedTopK.cell_arrays[1:],
    )

    def decode(
        self, name: str, stored: Mapping[str, Array], id_orders: Array | None, out: Array
    ) -> None:
        """Decode a field, or an intermediate array, of one chunk."""
        if name != "topk_ids":
            super().decode(name, stored, id_orders, out)
            return
        packed = stored["topk_id_places"]
        cells = kept_cells(stored["num_kept"], packed.shape[1])
        places = from_front(packed, cells, [(0, len(cells))])
        _put_ids(places.T[1:], stored, out)


def value_steps(log_p: Array, cells: npt.NDArray[np.bool_]) -> tuple[Array, Array]:
    """Codes [N, k] of log-probabilities [N, k], and their differences [k, N]; 0 in padding."""
    codes = np.maximum.accumulate(log_probability_codes(log_p, MAX_STEP), axis=1)
    steps = np.array(codes.T, order="C")  # a copy, also of one row
    steps[1:] -= steps[:-1].copy()
    steps[~cells.T] = 0
    return codes, steps


def _tied_steps(places: Array, codes: Array, cells: npt.NDArray[np.bool_]) -> Array:
    """Places [N, k], ascending in a run of equal codes and stored as differences less 1 there."""
    keys = codes.astype(np.uint64) << np.uint64(32) | places
    keys[~cells] = np.uint64(2**64 - 1)
    keys[:, 1:].sort(axis=1)
    ordered = keys.astype(np.uint32)  # the low half
    steps = ordered.copy()
    tied = (codes[:, 2:] == codes[:, 1:-1]) & cells[:, 2:]
    steps[:, 2:] -= (ordered[:, 1:-1] + np.uint32(1)) * tied
    steps[~cells] = 0
    return steps


def _label_rest(label: Array, rank: Array, codes: Array, num_kept: Array) -> Array:
    """What the label's log-probabilities [N] have beyond those of their cells."""
    cell, inside = _label_cell(rank, codes.T, num_kept)
    near = np.rint((label - cell) * np.float32(LABEL_STEPS)) / np.float32(LABEL_STEPS)
    return np.where(inside, near, label)


def _label_cell(rank: Array, codes: Array, num_kept: Array) -> tuple[Array, Array]:
    """Log-probability [N] of the label's cell, and whether it has one; codes [k, N]."""
    inside = rank < num_kept
    own = np.where(inside, rank, 0).astype(np.intp)
    return LOG_P.take(codes[own, np.arange(len(own))]), inside


def _tail_base(codes: Array, num_kept: Array) -> Array:
    """The code [N] of 1 minus the sum of the decoded cells; codes [k, N]."""
    # Indices of numpy's own type: take() would convert others more slowly.
    mass = _MASS.take(codes.astype(np.intp), mode="wrap")
    blank(mass.T, num_kept, 0)
    # The sum of rounded cells stays far below 2, so it fits 32 bits, which add up fastest.
    total = mass.sum(axis=0, dtype=np.uint32).astype(np.int64)
    left = np.maximum(_ONE - total, 0)
    base: Array = MAX_CODE + 1 - np.searchsorted(_RISING, left, side="right")
    return base


def _tail_steps(tail: Array, codes: Array, num_kept: Array) -> Array:
    """Codes of `tail_mass` [N] less those that a reader expects; 0 in rows without cells."""
    with np.errstate(divide="ignore"):
        wanted = log_probability_codes(np.log(tail), MAX_STEP).astype(np.int64)
    base = _tail_base(codes.T, num_kept)
    steps: Array = np.where(num_kept > 0, wanted - base, 0).astype(np.int16)
    return steps


def _decode_codes(stored: Mapping[str, Array], out: Array) -> None:
    steps, num_kept = stored["topk_logit_steps"].T, stored["num_kept"]
    if not all_kept(num_kept, len(steps)):
        steps = from_front(steps, kept_cells(num_kept, len(steps)).T, octaves(len(steps)))
    sum_of_steps(steps, out, "topk_logit_steps")


def _decode_table(stored: Mapping[str, Array], out: Array) -> None:
    decode_table(stored["topk_id_lists"], stored["topk_id_common"], out)


def decode_table(lists: Array, common: Array, out: Array) -> None:
    """The ids of all lists of a shard, then its common order, into `out` [C M + V]."""
    vocab_size = len(out) - IdLists.table_size(lists.shape, 0)
    out[:] = IdLists.from_stored(lists, common, vocab_size).table()


def _decode_ids(stored: Mapping[str, Array], out: Array) -> None:
    num_kept, packed = stored["num_kept"], stored["topk_id_places"].T[:-1]
    if not all_kept(num_kept, out.shape[1]):
        cells = kept_cells(num_kept, out.shape[1]).T[1:]
        packed = from_front(packed, cells, [(0, len(cells))])
    _put_ids(packed, stored, out)


def _put_ids(steps: Array, stored: Mapping[str, Array], out: Array) -> None:
    """Decode topk_ids [N, k] into `out` from the steps [k - 1, N] of the cells behind the first."""
    codes, num_kept, table = stored["topk_codes"], stored["num_kept"], stored["topk_id_table"]
    shape = stored["topk_id_lists"].shape
    check_places(steps, table, shape)
    most = num_places(table, shape)
    tied = np.zeros(steps.shape, np.bool_)
    np.equal(codes[2:], codes[1:-1], out=tied[1:])
    wide = len(steps) * most >= 1 << 32  # of a hostile store: no sum leaves its bits and comes back
    places = run_sums(steps.astype(np.uint64 if wide else np.uint32), tied)
    blank(places.T, num_kept - (num_kept > 0), 0)
    ids = ids_of_places(places, stored["topk_id_list"], table, shape)
    out[:, 0] = stored["argmax"]
    _put_in_order(ids, codes[1:], num_kept, most - shape[1], out[:, 1:])
    blank(out, num_kept, 0)


def _put_in_order(ids: Array, codes: Array, num_kept: Array, vocab_size: int, out: Array) -> None:
    """Put ids by code, then id, into `out` [N, k - 1]; ids and codes [k - 1, N]."""
    bits = (vocab_size - 1).bit_length()
    dtype = np.dtype("u4" if bits + _CODE_BITS < 32 else "u8")
    # Lines that are no power of two apart do not compete for one part of the processor's cache.
    by_rank: Array = np.empty((len(codes), codes.shape[1] + 16), dtype)[:, :-16]
    np.left_shift(codes, dtype.type(bits), out=by_rank, dtype=dtype)
    np.bitwise_or(by_rank, ids, out=by_rank)
    keys = np.ascontiguousarray(by_rank.T)
    blank(keys, num_kept - (num_kept > 0), 2 ** (8 * dtype.itemsize) - 1)
    keys.sort(axis=1)
    np.bitwise_and(keys, dtype.type((1 << bits) - 1), out=out, casting="unsafe")


def _decode_logits(stored: Mapping[str, Array], out: Array) -> None:
    logits_of_codes(stored["topk_codes"], LOG_P, stored["num_kept"], stored["logsumexp"], out)


def _decode_label(stored: Mapping[str, Array], out: Array) -> None:
    codes, num_kept = stored["topk_codes"], stored["num_kept"]
    cell, inside = _label_cell(stored["label_rank"], codes, num_kept)
    out[:] = stored["label_rest"] + np.where(inside, cell, 0) + stored["logsumexp"]


def _decode_tail(stored: Mapping[str, Array], out: Array) -> None:
    codes, num_kept = stored["topk_codes"], stored["num_kept"]
    own = stored["tail_steps"] + np.where(num_kept > 0, _tail_base(codes, num_kept), MAX_CODE)
    if own.size and (int(own.min()) < 0 or int(own.max()) > MAX_CODE):
        raise CorruptError("tail_steps lead to no code", cure="run caskd store verify")
    out[:] = np.exp(LOG_P.take(own))


_DECODERS = {
    "topk_codes": _decode_codes,
    "topk_id_table": _decode_table,
    "topk_ids": _decode_ids,
    "topk_logits": _decode_logits,
    "label_logit": _decode_label,
    "tail_mass": _decode_tail,
}
