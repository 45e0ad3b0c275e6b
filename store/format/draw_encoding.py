"""The draws of a sampled store: between the fields of a row and the arrays on disk.

Legend: N rows, k cells per row (one per draw), C orders of ids, V vocabulary.

A row holds the ids that were drawn and how often each: descending count, then ascending id. Most of
its k cells are padding, and in an order of frequency (see id_orders.py) the drawn ids are small
numbers. So on disk the cells of a row stand in ascending place in that order, ids as steps from
place to place, and the cells of a chunk's rows stand one behind another, without padding between
them: 29 bytes a row of 50 draws, where [N, k] as it stands takes 42.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from caskd.store.errors import CorruptError
from caskd.store.format.id_orders import IdPlaces
from caskd.store.format.layout import CELL_CHUNK, Array

_MOST = np.uint64(0xFFFF)  # counts are uint16
_LOW = np.uint64(0xFFFFFFFF)
_PADDING = np.uint64(2**64 - 1)  # sorts behind every cell


def encode_draws(rows: Mapping[str, Array], id_orders: npt.NDArray[np.uint32]) -> dict[str, Array]:
    """The arrays on disk of a shard's `sampled_ids` and `sampled_counts` [N, k], by name."""
    ids, counts, num_kept = rows["sampled_ids"], rows["sampled_counts"], rows["num_kept"]
    places = IdPlaces(id_orders)
    steps, tallies = np.zeros_like(ids), np.zeros_like(counts)
    chosen = np.zeros(len(ids), np.uint8)
    for start in range(0, len(ids), CELL_CHUNK):  # chunk by chunk
        block = slice(start, start + CELL_CHUNK)
        cells = kept_cells(num_kept[block], ids.shape[1])
        codes, chosen[block] = places.encode(ids[block], cells)
        keys = codes.astype(np.uint64) << np.uint64(16) | counts[block]
        keys = np.sort(np.where(cells, keys, _PADDING), axis=1)
        ordered = (keys >> np.uint64(16)).astype(np.uint32)
        ordered[:, 1:] -= ordered[:, :-1].copy()
        steps[block] = _to_front(ordered, cells)
        tallies[block] = _to_front((keys & _MOST).astype(np.uint16), cells)
    return {
        "sampled_place_steps": steps,
        "sampled_id_order": chosen,
        "sampled_place_counts": tallies,
    }


def decode_draws(
    steps: Array,
    tallies: Array,
    chosen: Array,
    num_kept: Array,
    orders: npt.NDArray[np.uint32],
) -> tuple[Array, Array]:
    """`sampled_ids` and `sampled_counts` [N, k] of the rows of one chunk, from its arrays on disk.

    Raises:
        CorruptError: a place beyond the vocabulary.
    """
    cells, vocab_size = kept_cells(num_kept, steps.shape[1]), orders.shape[1]
    places = np.cumsum(_from_front(steps, cells, np.int64), axis=1)
    places[~cells] = 0
    if places.size and int(places.max()) >= vocab_size:
        raise CorruptError(
            f"sampled_place_steps lead to {int(places.max()):,}, expected at most "
            f"{vocab_size - 1:,}. Run caskd store verify."
        )
    ids = orders.reshape(-1).take(places + chosen.astype(np.int64)[:, None] * vocab_size)
    counts = _from_front(tallies, cells, np.uint64)
    keys = np.where(cells, (_MOST - counts) << np.uint64(32) | ids, _PADDING)
    keys.sort(axis=1)
    ids = np.where(cells, keys & _LOW, 0).astype(np.uint32)
    return ids, np.where(cells, _MOST - (keys >> np.uint64(32)), 0).astype(np.uint16)


def kept_cells(num_kept: Array, k: int) -> npt.NDArray[np.bool_]:
    """Which cells [N, k] are no padding."""
    cells: npt.NDArray[np.bool_] = np.arange(k) < num_kept[:, None]
    return cells


def _to_front(values: Array, cells: npt.NDArray[np.bool_]) -> Array:
    """The cells of all rows one behind another, then zeros; still [N, k]."""
    packed = np.zeros(values.size, values.dtype)
    kept = values[cells]
    packed[: len(kept)] = kept
    return packed.reshape(values.shape)


def _from_front(packed: Array, cells: npt.NDArray[np.bool_], dtype: npt.DTypeLike) -> Array:
    """The reverse, padding 0."""
    values = np.zeros(packed.shape, dtype)
    values[cells] = packed.reshape(-1)[: np.count_nonzero(cells)]
    return values
