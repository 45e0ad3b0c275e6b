"""The compact encodings of sampled rows, with and without a head.

Legend: N rows, k cells per row (one per draw), C orders of ids, V vocabulary.

A row holds the ids that were drawn and the count of each: descending count, then ascending id. Most
of its k cells are padding, and drawn ids have small positions in an order of frequency (see
id_orders.py). On disk, the cells of a row stand in ascending position in that order, and an id is
the step from the position before it. The cells of a chunk's rows follow each other without padding.
A row of 50 draws takes 29 bytes; the arrays [N, k] of ids and counts take 42.

Of draws with a head, the head's cells are stored as in the compact encoding of a top-k.
"""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from caskd.store.cells import IdPositions, kept_cells
from caskd.store.errors import CorruptError
from caskd.store.format.codecs import Array
from caskd.store.format.layout import CELL_CHUNK
from caskd.store.format.rows import HEAD_SAMPLED, SAMPLED, RowArray, RowEncoding
from caskd.store.format.topk_encoding import decode_logits, logit_steps, rounded_mass

_MAX_COUNT = np.uint64(0xFFFF)  # counts are uint16
_LOW = np.uint64(0xFFFFFFFF)
_PADDING = np.uint64(2**64 - 1)  # sorts behind every cell


class CompactDraws(RowEncoding):
    """Ids as steps between positions in orders of ids, counts in the same sequence, no padding."""

    kind = SAMPLED
    name = "compact"
    cell_arrays = (
        RowArray("sampled_place_steps", "uint32", "ragged", "id", field="sampled_ids"),
        RowArray("sampled_id_order", "uint8", "shuffled", "order", is_column=True),
        RowArray("sampled_place_counts", "uint16", "ragged", "num_cells", field="sampled_counts"),
    )
    # The sequence of both fields depends on ids and counts, so each needs all arrays.
    sources = MappingProxyType(
        dict.fromkeys(
            ("sampled_ids", "sampled_counts"),
            ("sampled_place_steps", "sampled_id_order", "sampled_place_counts", "num_kept"),
        )
    )
    uses_id_orders = True
    cell_bytes = (0.1, 0.7)

    def encode(
        self, rows: Mapping[str, Array], id_orders: Array | None, vocab_size: int
    ) -> dict[str, Array]:
        """The arrays on disk of a shard."""
        assert id_orders is not None
        ids, counts, num_kept = rows["sampled_ids"], rows["sampled_counts"], rows["num_kept"]
        positions = IdPositions(id_orders)
        steps, packed_counts = np.zeros_like(ids), np.zeros_like(counts)
        chosen = np.zeros(len(ids), np.uint8)
        for start in range(0, len(ids), CELL_CHUNK):  # chunk by chunk
            block = slice(start, start + CELL_CHUNK)
            cells = kept_cells(num_kept[block], ids.shape[1])
            codes, chosen[block] = positions.encode(ids[block], cells)
            steps[block], packed_counts[block] = _packed_draws(codes, counts[block], cells)
        return {
            **{array.name: rows[array.name] for array in self.kind.columns},
            "sampled_place_steps": steps,
            "sampled_id_order": chosen,
            "sampled_place_counts": packed_counts,
        }

    def decode(
        self, name: str, stored: Mapping[str, Array], id_orders: Array | None, out: Array
    ) -> None:
        """Decode `sampled_ids` or `sampled_counts` of one chunk."""
        assert id_orders is not None
        ids, counts = decode_draws(
            stored["sampled_place_steps"],
            stored["sampled_place_counts"],
            stored["sampled_id_order"],
            stored["num_kept"],
            id_orders,
        )
        out[:] = ids if name == "sampled_ids" else counts


class CompactHeadDraws(RowEncoding):
    """The head as in a compact top-k, the draws as in compact draws, in one order of ids a row."""

    kind = HEAD_SAMPLED
    name = "compact"
    cell_arrays = (
        RowArray("head_id_codes", "uint32", "ragged", "id", field="sampled_ids"),
        RowArray("head_logit_steps", "uint16", "transposed", field="head_logits"),
        RowArray("sampled_place_steps", "uint32", "ragged", "id"),
        RowArray("sampled_place_counts", "uint16", "ragged", "num_cells", field="sampled_counts"),
        RowArray("sampled_id_order", "uint8", "shuffled", "order", is_column=True),
    )
    _DRAWS = (
        "sampled_place_steps", "sampled_place_counts", "sampled_id_order", "num_kept", "num_head",
    )  # fmt: skip
    sources = MappingProxyType(
        {
            "sampled_ids": ("head_id_codes", *_DRAWS),
            "sampled_counts": _DRAWS,
            "head_logits": ("head_logit_steps", "num_head", "logsumexp"),
        }
    )
    uses_id_orders = True
    exact = False
    cell_bytes = (0.2, 1.6)

    def encode(
        self, rows: Mapping[str, Array], id_orders: Array | None, vocab_size: int
    ) -> dict[str, Array]:
        """The arrays on disk of a shard."""
        assert id_orders is not None
        ids, counts = rows["sampled_ids"], rows["sampled_counts"]
        positions = IdPositions(id_orders)
        heads, steps, packed_counts = map(np.zeros_like, (ids, ids, counts))
        chosen = np.zeros(len(ids), np.uint8)
        logits = np.zeros(ids.shape[::-1], np.uint16)
        for start in range(0, len(ids), CELL_CHUNK):  # chunk by chunk
            block = slice(start, start + CELL_CHUNK)
            cells, head = _cells_and_head(rows["num_kept"][block], rows["num_head"][block], ids)
            codes, chosen[block] = positions.encode(ids[block], cells)
            heads[block] = _to_front(codes, head)
            steps[block], packed_counts[block] = _packed_draws(codes, counts[block], cells & ~head)
            lse = rows["logsumexp"][block]
            logits[:, block] = logit_steps(rows["head_logits"][block], lse, head)
        return {
            **{array.name: rows[array.name] for array in self.kind.columns},
            "head_id_codes": heads,
            "head_logit_steps": logits.T,
            "sampled_place_steps": steps,
            "sampled_place_counts": packed_counts,
            "sampled_id_order": chosen,
            "drawn_mass": rounded_mass(rows["drawn_mass"]),
        }

    def decode(
        self, name: str, stored: Mapping[str, Array], id_orders: Array | None, out: Array
    ) -> None:
        """Decode the ids, the counts or the head's logits of one chunk."""
        assert id_orders is not None
        num_head = stored["num_head"]
        if name == "head_logits":
            decode_logits(stored["head_logit_steps"], num_head, stored["logsumexp"], out)
            return
        num_kept, chosen = stored["num_kept"], stored["sampled_id_order"]
        if (num_head > num_kept).any():
            raise CorruptError("num_head exceeds num_kept", cure="run caskd store verify")
        cells, head = _cells_and_head(num_kept, num_head, out)
        num_drawn = num_kept - num_head
        ids, counts = decode_draws(
            stored["sampled_place_steps"], stored["sampled_place_counts"], chosen, num_drawn,
            id_orders,
        )  # fmt: skip
        drawn, found = kept_cells(num_drawn, out.shape[1]), np.zeros(out.shape, out.dtype)
        found[cells & ~head] = (ids if name == "sampled_ids" else counts)[drawn]
        if name == "sampled_ids":
            codes = _from_front(stored["head_id_codes"], head, np.int64)
            own = id_orders.reshape(-1).take(
                codes + chosen.astype(np.int64)[:, None] * id_orders.shape[1]
            )
            found[head] = own[head]
        out[:] = found


def _cells_and_head(
    num_kept: Array, num_head: Array, like: Array
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Masks [N, k] of all cells and of the head's; k is that of `like`."""
    return kept_cells(num_kept, like.shape[1]), kept_cells(num_head, like.shape[1])


def _packed_draws(codes: Array, counts: Array, drawn: npt.NDArray[np.bool_]) -> tuple[Array, Array]:
    """Steps between the positions of drawn cells, ascending in each row, and their counts.

    Args:
        codes: positions [N, k].
        counts: [N, k].
        drawn: [N, k], True where a cell is drawn.

    Returns:
        Both [N, k], the cells of all rows in front.
    """
    keys = codes.astype(np.uint64) << np.uint64(16) | counts
    keys = np.sort(np.where(drawn, keys, _PADDING), axis=1)
    cells = kept_cells(np.count_nonzero(drawn, axis=1), codes.shape[1])
    ordered = (keys >> np.uint64(16)).astype(np.uint32)
    ordered[:, 1:] -= ordered[:, :-1].copy()
    return _to_front(ordered, cells), _to_front((keys & _MAX_COUNT).astype(np.uint16), cells)


def decode_draws(
    steps: Array,
    packed_counts: Array,
    chosen: Array,
    num_kept: Array,
    orders: npt.NDArray[np.uint32],
) -> tuple[Array, Array]:
    """`sampled_ids` and `sampled_counts` [N, k] of the rows of one chunk.

    Args:
        steps: `sampled_place_steps` [N, k].
        packed_counts: `sampled_place_counts` [N, k].
        chosen: `sampled_id_order` [N].
        num_kept: [N].
        orders: [C, V].

    Raises:
        CorruptError: a position beyond the vocabulary.
    """
    cells, vocab_size = kept_cells(num_kept, steps.shape[1]), orders.shape[1]
    positions = np.cumsum(_from_front(steps, cells, np.int64), axis=1)
    positions[~cells] = 0
    if positions.size and int(positions.max()) >= vocab_size:
        raise CorruptError(
            f"sampled_place_steps lead to {int(positions.max()):,}; expected at most "
            f"{vocab_size - 1:,}",
            cure="run caskd store verify",
        )
    ids = orders.reshape(-1).take(positions + chosen.astype(np.int64)[:, None] * vocab_size)
    counts = _from_front(packed_counts, cells, np.uint64)
    keys = np.where(cells, (_MAX_COUNT - counts) << np.uint64(32) | ids, _PADDING)
    keys.sort(axis=1)
    ids = np.where(cells, keys & _LOW, 0).astype(np.uint32)
    return ids, np.where(cells, _MAX_COUNT - (keys >> np.uint64(32)), 0).astype(np.uint16)


def _to_front(values: Array, cells: npt.NDArray[np.bool_]) -> Array:
    """Move the cells of all rows to the front, zeros behind them; the shape stays [N, k]."""
    packed = np.zeros(values.size, values.dtype)
    kept = values[cells]
    packed[: len(kept)] = kept
    return packed.reshape(values.shape)


def _from_front(packed: Array, cells: npt.NDArray[np.bool_], dtype: npt.DTypeLike) -> Array:
    """Undo `_to_front`; padding is 0."""
    values = np.zeros(packed.shape, dtype)
    values[cells] = packed.reshape(-1)[: np.count_nonzero(cells)]
    return values
