"""Drawn ids of rows, from and to their sequence on disk.

Legend: N rows, k cells per row.

A row holds the distinct ids that were drawn: descending count, then ascending id. On disk, its
cells stand by ascending place of the id, a small number for a frequent one. A place is the step
from the place before it, and the cells of a chunk's rows follow each other without padding.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from caskd.store.cells.id_orders import kept_cells

Array = npt.NDArray[Any]

_MAX_COUNT = np.uint64(0xFFFF)  # counts are uint16
_LOW = np.uint64(0xFFFFFFFF)
_PADDING = np.uint64(2**64 - 1)  # sorts behind every cell


def packed_draws(
    places: Array, counts: Array, drawn: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint16]]:
    """Steps between the places of drawn cells, ascending in each row, and their counts.

    Args:
        places: [N, k].
        counts: [N, k].
        drawn: [N, k], True where a cell is drawn.

    Returns:
        Both [N, k], the cells of all rows in front.
    """
    keys = places.astype(np.uint64) << np.uint64(16) | counts
    keys = np.sort(np.where(drawn, keys, _PADDING), axis=1)
    cells = kept_cells(np.count_nonzero(drawn, axis=1), places.shape[1])
    ordered = (keys >> np.uint64(16)).astype(np.uint32)
    ordered[:, 1:] -= ordered[:, :-1].copy()
    return to_cells(ordered, cells), to_cells((keys & _MAX_COUNT).astype(np.uint16), cells)


def draw_cells(
    ids: Array, counts: npt.NDArray[np.uint64], cells: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint16]]:
    """Ids and counts [N, k] in the sequence of the fields, from any sequence; padding is 0."""
    keys = np.where(cells, (_MAX_COUNT - counts) << np.uint64(32) | ids, _PADDING)
    keys.sort(axis=1)
    ordered = np.where(cells, keys & _LOW, 0).astype(np.uint32)
    return ordered, np.where(cells, _MAX_COUNT - (keys >> np.uint64(32)), 0).astype(np.uint16)


def to_cells(values: Array, cells: npt.NDArray[np.bool_]) -> Array:
    """Move the cells of all rows to the front, zeros behind them; the shape stays [N, k]."""
    packed = np.zeros(values.size, values.dtype)
    kept = values[cells]
    packed[: len(kept)] = kept
    return packed.reshape(values.shape)


def from_cells(packed: Array, cells: npt.NDArray[np.bool_], dtype: npt.DTypeLike) -> Array:
    """Undo `to_cells`; padding is 0."""
    values = np.zeros(packed.shape, dtype)
    values[cells] = packed.reshape(-1)[: np.count_nonzero(cells)]
    return values


def places_of_steps(steps: Array, cells: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Places [N, k] of drawn cells from `packed_draws`' steps; padding is 0."""
    places = np.cumsum(from_cells(steps, cells, np.int64), axis=1)
    places[~cells] = 0
    return places


def put_behind_head(drawn: Array, num_head: Array, num_kept: Array, out: Array) -> None:
    """Drawn cells [N, k] of rows into `out` [N, k], behind each row's head; 0 elsewhere."""
    k = out.shape[1]
    out[:] = 0
    behind = kept_cells(num_kept, k) & ~kept_cells(num_head, k)
    out[behind] = drawn[kept_cells(num_kept - num_head, k)]
