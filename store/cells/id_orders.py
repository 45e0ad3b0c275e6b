"""Orders of token ids, which make frequent ids small numbers.

Legend: N rows, k cells per row, V vocabulary, C orders.

An id is stored as its position in an order of all ids, because small numbers pack well. A single
order, most frequent id first, would serve every row alike. But the ids of a row are related: word
beginnings, word endings, digits, another language. So the rows of a short pilot are clustered by
their ids, each cluster gets its own order, and each row uses the order that suits it best. On real
rows that saves 6 bytes a row with 8 orders and 9 with 16, for 20 to 40 kB an order.

Costs are rounded to integers. Their sums are therefore exact, and equal rows give equal bytes.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

BITS = 256  # costs are in 1/256 bit
PRIOR = 1000  # number of ids, distributed as in the whole pilot, that are added to every cluster
UNSEEN = 0.02  # count of an id that does not occur in the pilot
ROUNDS = 12
CHOICE_CELLS = 32  # leading cells of a row that choose its order


def fit_orders(
    ids: npt.NDArray[np.uint32], num_kept: Array, vocab_size: int, num_orders: int
) -> npt.NDArray[np.uint32]:
    """Orders of all ids [C, V]: in each, the frequent ids of one cluster first, ties to the lowest.

    Args:
        ids: token ids [N, k] of the pilot's rows.
        num_kept: [N]; cells from there on are padding.
        vocab_size: V.
        num_orders: C; a single order is the order of frequency.
    """
    cells = kept_cells(num_kept, ids.shape[1])
    counts = np.bincount(ids[cells], minlength=vocab_size) + UNSEEN
    share = counts / counts.sum()
    cluster = _initial_clusters(len(ids), num_orders)
    for _ in range(ROUNDS if num_orders > 1 else 1):
        costs = np.stack(
            [
                _costs(np.bincount(ids[members][cells[members]], minlength=vocab_size), share)
                for members in (cluster == number for number in range(num_orders))
            ]
        )
        cluster = _cheapest(costs, ids, cells)
    return np.argsort(costs, axis=1, kind="stable").astype(np.uint32)


def _initial_clusters(num_rows: int, num_clusters: int) -> Array:
    """Pseudo-random initial cluster of each row [N]."""
    return (np.arange(num_rows, dtype=np.uint64) * 2654435761 % 2**32 * num_clusters) >> 32


def _costs(counts: Array, share: npt.NDArray[np.float64]) -> npt.NDArray[np.uint32]:
    """Cost [V] of each id in a cluster with these counts."""
    probability = (counts + PRIOR * share) / (counts.sum() + PRIOR)
    costs: npt.NDArray[np.uint32] = np.rint(-BITS * np.log2(probability)).astype(np.uint32)
    return costs


def _cheapest(costs: Array, ids: Array, cells: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """For each row [N], which of the C `costs` [C, V] has the smallest sum over the row's ids."""
    whole = bool(cells.all())
    sums = np.empty((len(costs), len(ids)), np.uint32)
    for cost, total in zip(costs, sums, strict=True):
        cell_costs = cost.take(ids)
        cell_costs.sum(axis=1, dtype=np.uint32, out=total, where=True if whole else cells)
    cheapest: npt.NDArray[np.uint8] = sums.argmin(axis=0).astype(np.uint8)
    return cheapest


class IdPositions:
    """The position of each id in each order."""

    def __init__(self, orders: npt.NDArray[np.uint32]) -> None:
        num_orders, vocab_size = orders.shape
        self._positions = np.empty_like(orders)
        np.put_along_axis(self._positions, orders, np.arange(vocab_size, dtype=np.uint32)[None], 1)
        # Approximate bits that a position takes, since small numbers pack well.
        self._costs = np.rint(BITS * np.log2(self._positions + 8.0)).astype(np.uint16)
        self._starts = np.arange(num_orders, dtype=np.uint32) * np.uint32(vocab_size)

    def encode(
        self, ids: npt.NDArray[np.uint32], cells: npt.NDArray[np.bool_]
    ) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint8]]:
        """The cheapest order [N] of each row, and the positions [N, k] of its ids in that order.

        Args:
            ids: [N, k].
            cells: [N, k], False in padding. Positions of padding are 0, and so is the order of a
                row without cells.
        """
        first = slice(0, CHOICE_CELLS)
        if len(self._positions) == 1:
            chosen = np.zeros(len(ids), np.uint8)
        else:
            chosen = _cheapest(self._costs, ids[:, first], cells[:, first])
        codes = self._positions.reshape(-1).take(ids + self._starts[chosen][:, None])
        codes[~cells] = 0
        return codes, chosen


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
