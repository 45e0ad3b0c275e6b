"""Orders of token ids, which make frequent ids small numbers in stores of the compact encoding.

Legend: N rows, k cells per row, V vocabulary, C orders.

An id is stored as its position in an order of all ids. The orders of a store were fitted to the
rows of a short pilot; each row names the one that it uses. New stores have lists of ids instead,
which each shard holds (id_lists.py).
"""

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def decode_ids(
    codes: npt.NDArray[np.uint32],
    chosen: npt.NDArray[np.uint8],
    num_kept: Array,
    orders: npt.NDArray[np.uint32],
    out: Array,
) -> None:
    """Decode topk_ids [N, k] from their positions into `out`; padding is 0."""
    num_orders, vocab_size = orders.shape
    positions = codes.astype(np.intp)  # numpy's own index type: take() converts others more slowly
    if num_orders > 1:
        positions += chosen.astype(np.intp)[:, None] * vocab_size
    orders.reshape(-1).take(positions, out=out, mode="wrap")
    blank(out, num_kept, 0)


def kept_cells(num_kept: Array, k: int) -> npt.NDArray[np.bool_]:
    """Mask [N, k] of the cells that are not padding."""
    cells: npt.NDArray[np.bool_] = np.arange(k) < num_kept[:, None]
    return cells


def all_kept(num_kept: Array, k: int) -> bool:
    """Whether no row has padding."""
    return not len(num_kept) or int(num_kept.min()) == k


def blank(cells: Array, num_kept: Array, value: float) -> None:
    """Overwrite the padding of `cells` [N, k] with `value`."""
    k = cells.shape[1]
    if not all_kept(num_kept, k):
        cells[~kept_cells(num_kept, k)] = value
