"""The fitted encodings of sampled rows, with and without a head.

Legend: N rows of a chunk, k cells per row, V vocabulary, C lists of M ids.

Ids are places in lists that each shard holds, as in the fitted encoding of a top-k (see
store/cells/id_lists.py). The cells of draws are stored as store/cells/draws.py describes. Ids and
counts of 50 draws take 20 bytes; the arrays [N, k] of both take 42.

Of draws with a head, the head's places stand in rank order. Its log-probabilities are quantised as
those of a top-k, and stored in octaves of ranks.
"""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from caskd.store.cells import (
    IdLists,
    ListPlaces,
    ListShape,
    draw_cells,
    fit_lists,
    from_cells,
    from_front,
    ids_of_places,
    kept_cells,
    logits_of_codes,
    octaves,
    packed_draws,
    places_of_steps,
    put_behind_head,
    rounded_mass,
    sum_of_steps,
    to_cells,
    to_front,
)
from caskd.store.format.codecs import Array
from caskd.store.format.fitted_encoding import LOG_P, decode_table, value_steps
from caskd.store.format.layout import CELL_CHUNK, ArrayLayout
from caskd.store.format.rows import (
    HEAD_SAMPLED,
    SAMPLED,
    Derived,
    RowArray,
    RowEncoding,
    check_heads,
)

_LISTS, _COMMON, _TABLE = "sampled_id_lists", "sampled_id_common", "sampled_id_table"
_LIST = "sampled_id_list"


class FittedDraws(RowEncoding):
    """Ids as steps between places in lists of the shard, counts in the same sequence."""

    kind = SAMPLED
    name = "fitted2"
    cell_bytes = (0.1, 0.7)
    rows_as_one = 4
    """Rows that hold about as many ids as one of a top-k."""
    cell_arrays: tuple[RowArray, ...] = (
        RowArray("sampled_place_steps", "uint32", "ragged", field="sampled_ids"),
        RowArray("sampled_id_list", "uint8", "shuffled", is_column=True),
        RowArray("sampled_place_counts", "uint16", "ragged", "num_cells", field="sampled_counts"),
    )
    derived = MappingProxyType({_TABLE: Derived("uint32", (_LISTS, _COMMON), of_shard=True)})
    # The sequence of both fields depends on ids and counts, so each needs all arrays.
    _DRAWS = (
        "sampled_place_steps", "sampled_place_counts", "sampled_id_list", "num_kept",
        _TABLE, _LISTS,
    )  # fmt: skip
    sources = MappingProxyType(dict.fromkeys(("sampled_ids", "sampled_counts"), _DRAWS))

    def tables(self, vocab_size: int, shard_rows: int) -> tuple[ArrayLayout, ...]:
        """The lists and the head of the common order."""
        shape = self.list_shape(shard_rows, vocab_size)
        size = shape.num_lists
        return (
            ArrayLayout(_LISTS, "uint32", size, size, "octaves", shape.length),
            ArrayLayout(_COMMON, "uint32", 1, 1, "octaves", shape.common),
        )

    def list_shape(self, shard_rows: int, vocab_size: int) -> ListShape:
        """The lists of a shard: those of a shard of a top-k with about as many ids."""
        return ListShape.of(max(1, shard_rows // self.rows_as_one), vocab_size)

    def derived_shape(
        self, name: str, num_cells: int, chunk_rows: int, tables: Mapping[str, tuple[int, ...]],
        vocab_size: int,
    ) -> tuple[int, ...]:  # fmt: skip
        """Shape of the table of a shard."""
        return (IdLists.table_size(tables[_LISTS], vocab_size),)

    def _fitted(
        self, rows: Mapping[str, Array], vocab_size: int
    ) -> tuple[ListPlaces, dict[str, Array]]:
        """The lists of a shard, and the arrays on disk that hold them and each row's list."""
        ids, num_kept = rows["sampled_ids"], rows["num_kept"]
        shape = self.list_shape(len(num_kept), vocab_size)
        own = self.list_shape(int(np.count_nonzero(num_kept)), vocab_size)
        lists, group = fit_lists(ids, num_kept, vocab_size, shape, own)
        tables = dict(zip((_LISTS, _COMMON), lists.stored(shape), strict=True))
        return ListPlaces(lists), {**tables, _LIST: group}

    def encode(self, rows: Mapping[str, Array], vocab_size: int) -> dict[str, Array]:
        """The arrays on disk of a shard."""
        places, stored = self._fitted(rows, vocab_size)
        steps, counts = np.zeros_like(rows["sampled_ids"]), np.zeros_like(rows["sampled_counts"])
        for block, cells in _blocks(rows["num_kept"], steps.shape):
            steps[block], counts[block] = packed_draws(
                places.of(rows["sampled_ids"][block], stored["sampled_id_list"][block]),
                rows["sampled_counts"][block],
                cells,
            )
        return {
            **{array.name: rows[array.name] for array in self.kind.columns},
            **stored,
            "sampled_place_steps": steps,
            "sampled_place_counts": counts,
        }

    def decode(
        self, name: str, stored: Mapping[str, Array], id_orders: Array | None, out: Array
    ) -> None:
        """Decode a field of one chunk, or the table of a shard."""
        if name == _TABLE:
            decode_table(stored[_LISTS], stored[_COMMON], out)
            return
        ids, counts = _draws(stored, stored["num_kept"])
        out[:] = ids if name == "sampled_ids" else counts


class FittedHeadDraws(FittedDraws):
    """The head's places and values by rank, the draws as in `FittedDraws`."""

    kind = HEAD_SAMPLED
    exact = False
    cell_bytes = (0.2, 1.6)
    rows_as_one = 1
    cell_arrays = (
        RowArray("head_id_places", "uint32", "ragged", field="sampled_ids"),
        RowArray("head_logit_steps", "uint16", "octaves", field="head_logits"),
        RowArray("sampled_place_steps", "uint32", "ragged"),
        RowArray("sampled_place_counts", "uint16", "ragged", "num_cells", field="sampled_counts"),
        RowArray("sampled_id_list", "uint8", "shuffled", is_column=True),
    )
    sources = MappingProxyType(
        {
            "sampled_ids": ("head_id_places", *FittedDraws._DRAWS, "num_head"),
            "sampled_counts": (*FittedDraws._DRAWS, "num_head"),
            "head_logits": ("head_logit_steps", "num_head", "logsumexp"),
        }
    )

    def encode(self, rows: Mapping[str, Array], vocab_size: int) -> dict[str, Array]:
        """The arrays on disk of a shard."""
        places, stored = self._fitted(rows, vocab_size)
        ids, counts = rows["sampled_ids"], rows["sampled_counts"]
        heads, steps, packed = np.zeros_like(ids), np.zeros_like(ids), np.zeros_like(counts)
        values = np.zeros(ids.shape[::-1], np.uint16)
        for block, cells in _blocks(rows["num_kept"], ids.shape):
            head = kept_cells(rows["num_head"][block], ids.shape[1])
            own = places.of(ids[block], stored["sampled_id_list"][block])
            heads[block] = to_cells(own, head)
            steps[block], packed[block] = packed_draws(own, counts[block], cells & ~head)
            log_p = rows["head_logits"][block] - rows["logsumexp"][block, None]
            _, differences = value_steps(log_p, head)
            values[:, block] = to_front(differences, head.T, octaves(ids.shape[1]))
        return {
            **{array.name: rows[array.name] for array in self.kind.columns},
            **stored,
            "head_id_places": heads,
            "head_logit_steps": values.T,
            "sampled_place_steps": steps,
            "sampled_place_counts": packed,
            "drawn_mass": rounded_mass(rows["drawn_mass"]),
        }

    def decode(
        self, name: str, stored: Mapping[str, Array], id_orders: Array | None, out: Array
    ) -> None:
        """Decode a field of one chunk, or the table of a shard."""
        if name == "head_logits":
            _decode_logits(stored, out)
        elif name == _TABLE:
            super().decode(name, stored, id_orders, out)
        else:
            _decode_head_draws(name, stored, out)


def _blocks(num_kept: Array, shape: tuple[int, ...]) -> list[tuple[slice, npt.NDArray[np.bool_]]]:
    """The chunks of a shard with rows [N, k], and the mask of the cells of each."""
    starts = range(0, shape[0], CELL_CHUNK)
    blocks = [slice(start, start + CELL_CHUNK) for start in starts]
    return [(block, kept_cells(num_kept[block], shape[1])) for block in blocks]


def _ids(places: Array, name: str, stored: Mapping[str, Array]) -> Array:
    """Ids [N, k] of places [N, k], from the array `name`."""
    group, table, shape = stored[_LIST], stored[_TABLE], stored[_LISTS].shape
    return ids_of_places(places.T, group, table, shape, (name, _LIST)).T


def _draws(stored: Mapping[str, Array], num_drawn: Array) -> tuple[Array, Array]:
    """Ids and counts [N, k] of the drawn cells of one chunk's rows.

    Raises:
        CorruptError: a place beyond the vocabulary.
    """
    steps = stored["sampled_place_steps"]
    cells = kept_cells(num_drawn, steps.shape[1])
    places = places_of_steps(steps, cells)
    counts = from_cells(stored["sampled_place_counts"], cells, np.uint64)
    return draw_cells(_ids(places, "sampled_place_steps", stored), counts, cells)


def _decode_head_draws(name: str, stored: Mapping[str, Array], out: Array) -> None:
    """Decode ids or counts [N, k] of rows with a head."""
    num_kept, num_head = stored["num_kept"], stored["num_head"]
    check_heads(num_head, num_kept)
    ids, counts = _draws(stored, num_kept - num_head)
    put_behind_head(ids if name == "sampled_ids" else counts, num_head, num_kept, out)
    if name == "sampled_ids":
        head = kept_cells(num_head, out.shape[1])
        places = from_cells(stored["head_id_places"], head, np.int64)
        out[head] = _ids(places, "head_id_places", stored)[head]


def _decode_logits(stored: Mapping[str, Array], out: Array) -> None:
    num_head, codes = stored["num_head"], np.empty(out.shape[::-1], np.uint16)
    head = kept_cells(num_head, out.shape[1])
    steps = from_front(stored["head_logit_steps"].T, head.T, octaves(out.shape[1]))
    sum_of_steps(np.ascontiguousarray(steps), codes, "head_logit_steps")
    logits_of_codes(codes, LOG_P, num_head, stored["logsumexp"], out)
