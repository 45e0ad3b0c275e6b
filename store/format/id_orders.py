"""Orders of ids: a short pilot of the teacher says which ids stand together in a row's top-k.

Legend: N rows, k cells per row, V vocabulary, C orders.

An id is stored as its place in an order of all ids, and small numbers pack well. One order, most
frequent first, serves every row alike. But the ids of a row keep company: word beginnings, word
endings, digits, another language. So the pilot's rows are grouped by what they hold, each group
gets its own order, and a row uses the order that suits it best. On real rows that saves 6 bytes a
row with 8 orders and 9 with 16, for 20 to 40 kB an order.

Costs are rounded to integers, so that their sums are exact and the same rows give the same bytes.
"""

import numpy as np
import numpy.typing as npt

from caskd.store.format.layout import Array

BITS = 256  # costs are in 1/256 bit
PRIOR = 1000  # the whole pilot counts as so many ids of every group
UNSEEN = 0.02  # an id that the pilot has not seen counts as so much of one that it has
ROUNDS = 12
CHOICE_CELLS = 32  # the first ranks tell which order suits a row


def fit_orders(
    ids: npt.NDArray[np.uint32], num_kept: Array, vocab_size: int, num_orders: int
) -> npt.NDArray[np.uint32]:
    """Orders of all ids [C, V], those that stand together in rows first, ties to the lowest id.

    Args:
        ids: the pilot's topk_ids [N, k].
        num_kept: [N]; cells from there on do not count.
        vocab_size: V.
        num_orders: C; with 1 it is the order of frequency.
    """
    cells = np.arange(ids.shape[1]) < num_kept[:, None]
    counts = np.bincount(ids[cells], minlength=vocab_size) + UNSEEN
    share = counts / counts.sum()
    group = _scattered(len(ids), num_orders)
    for _ in range(ROUNDS if num_orders > 1 else 1):
        costs = np.stack(
            [
                _costs(np.bincount(ids[group == g][cells[group == g]], minlength=vocab_size), share)
                for g in range(num_orders)
            ]
        )
        group = _cheapest(costs, ids, cells)
    return np.argsort(costs, axis=1, kind="stable").astype(np.uint32)


def _scattered(num_rows: int, num_groups: int) -> Array:
    """A first group of each row, as good as random."""
    return (np.arange(num_rows, dtype=np.uint64) * 2654435761 % 2**32 * num_groups) >> 32


def _costs(counts: Array, share: npt.NDArray[np.float64]) -> npt.NDArray[np.uint32]:
    """Cost [V] of each id in a group with these counts."""
    probability = (counts + PRIOR * share) / (counts.sum() + PRIOR)
    costs: npt.NDArray[np.uint32] = np.rint(-BITS * np.log2(probability)).astype(np.uint32)
    return costs


def _cheapest(costs: Array, ids: Array, cells: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """Number [N] of the row of `costs` [C, V] with the least sum over a row's ids."""
    whole = bool(cells.all())
    sums = np.empty((len(costs), len(ids)), np.uint32)
    for cost, total in zip(costs, sums, strict=True):
        cell_costs = cost.take(ids)
        cell_costs.sum(axis=1, dtype=np.uint32, out=total, where=True if whole else cells)
    cheapest: npt.NDArray[np.uint8] = sums.argmin(axis=0).astype(np.uint8)
    return cheapest


class IdPlaces:
    """Where each id stands in each order."""

    def __init__(self, orders: npt.NDArray[np.uint32]) -> None:
        num_orders, vocab_size = orders.shape
        self._places = np.empty_like(orders)
        np.put_along_axis(self._places, orders, np.arange(vocab_size, dtype=np.uint32)[None], 1)
        # What a place costs when small numbers pack well.
        self._costs = np.rint(BITS * np.log2(self._places + 8.0)).astype(np.uint16)
        self._starts = np.arange(num_orders, dtype=np.uint32) * np.uint32(vocab_size)

    def encode(
        self, ids: npt.NDArray[np.uint32], cells: npt.NDArray[np.bool_]
    ) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint8]]:
        """Places [N, k] of ids [N, k], and which order [N] they are in; 0 where not `cells`."""
        first = slice(0, CHOICE_CELLS)
        if len(self._places) == 1:
            chosen = np.zeros(len(ids), np.uint8)
        else:
            chosen = _cheapest(self._costs, ids[:, first], cells[:, first])
        codes = self._places.reshape(-1).take(ids + self._starts[chosen][:, None])
        codes[~cells] = 0
        chosen[~cells[:, 0]] = 0
        return codes, chosen


def decode_ids(
    codes: npt.NDArray[np.uint32],
    chosen: npt.NDArray[np.uint8],
    num_kept: Array,
    orders: npt.NDArray[np.uint32],
    out: Array,
) -> None:
    """topk_ids [N, k] from their places, into `out`; padding is 0."""
    num_orders, vocab_size = orders.shape
    places = codes.astype(np.intp)  # numpy would do that too, more slowly
    if num_orders > 1:
        places += chosen.astype(np.intp)[:, None] * vocab_size
    orders.reshape(-1).take(places, out=out, mode="wrap")
    blank(out, num_kept, 0)


def blank(cells: Array, num_kept: Array, value: float) -> None:
    """Set the padding of `cells` [N, k]."""
    k = cells.shape[1]
    if len(num_kept) and int(num_kept.min()) < k:
        cells[np.arange(k) >= num_kept[:, None]] = value
