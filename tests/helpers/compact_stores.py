"""Stores of the compact encoding, as earlier versions wrote them: a pilot, then shards.

Legend: N rows, k cells per row, C orders of ids, V vocabulary.

caskd reads such stores and writes none; tests of reading, verifying and repairing need some.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from caskd.store.cells import (
    kept_cells,
    log_probability_codes,
    packed_draws,
    rounded_mass,
    to_cells,
)
from caskd.store.commits import commit_record, publish
from caskd.store.format import encode_whole, layout
from caskd.store.format.compact_encoding import MAX_STEP
from caskd.store.spacing import thin
from caskd.store.write import ShardWork, StoreWriter

Array = npt.NDArray[Any]
Rows = Mapping[str, Array]

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


def logit_steps(logits: Array, logsumexp: Array, cells: npt.NDArray[np.bool_]) -> Array:
    """Differences [k, N] between the codes of neighbouring ranks; 0 in padding."""
    log_p = np.subtract(logits.T, logsumexp, order="C")  # padding is -inf
    codes = log_probability_codes(log_p, MAX_STEP)
    if (codes[1:] < codes[:-1]).any():
        codes = np.maximum.accumulate(codes, axis=0)
    codes[1:] -= codes[:-1].copy()
    codes[~cells.T] = 0
    return codes


class OldWriter(StoreWriter):
    """A writer of any encoding; of a compact store it commits the pilot, too."""

    def pilot(self) -> ShardWork | None:
        """Examples whose rows the orders of ids are fitted to; None where nothing is missing."""
        if not self.spec.row_encoding.uses_id_orders or self.is_complete(commit_record.PILOT):
            return None
        counts = self._index.row_count
        chosen = pilot_examples(counts, pilot_rows(self.spec.num_rows))
        starts = np.concatenate([[0], np.cumsum(counts[chosen])])
        return ShardWork(-1, self._examples(chosen, starts))

    def commit_pilot(self, rows: Rows) -> bool:
        """Fit the orders of ids and commit them."""
        ids, number = rows[self.spec.row_kind.id_field], layout.num_orders(self.spec.num_rows)
        orders = fit_orders(ids, rows["num_kept"], self.spec.vocab_size, number)
        contents = encode_whole(layout.ID_ORDER, orders.reshape(-1))
        facts = {"num_rows": 0, "statuses": {}}
        return publish.commit(self.root, commit_record.PILOT, contents, facts)

    def _encoded(self, rows: Rows) -> dict[str, Array]:
        if not self.spec.row_encoding.uses_id_orders:
            return super()._encoded(rows)
        orders = self._store.id_order
        assert orders is not None
        return encoded(self.spec.kind, rows, orders)


def pilot_rows(num_rows: int) -> int:
    """1/128 of the rows, of a small store 1/32; at least 256 and at most 32,768."""
    return min(num_rows, 1 << 15, max(256, min(1 << 11, num_rows // 32), num_rows // 128))


def pilot_examples(row_counts: npt.NDArray[np.int32], target: int) -> npt.NDArray[np.int64]:
    """Examples spread evenly over the corpus that together have about `target` rows."""
    with_rows = np.flatnonzero(row_counts)
    mean = row_counts[with_rows].mean()
    amount = int(np.clip(np.ceil(target / mean), 1, len(with_rows)))
    return with_rows[thin(len(with_rows), amount)]


def encoded(kind: str, rows: Rows, orders: npt.NDArray[np.uint32]) -> dict[str, Array]:
    """The arrays on disk of a shard of rows of this kind."""
    of_kind = {"topk": _topk, "sampled": _draws, "head_sampled": _head_draws}
    stored = of_kind[kind](rows, IdPositions(orders))
    columns = {name: values for name, values in rows.items() if values.ndim == 1}
    return columns | stored


def _topk(rows: Rows, positions: IdPositions) -> dict[str, Array]:
    cells = kept_cells(rows["num_kept"], rows["topk_ids"].shape[1])
    codes, chosen = positions.encode(rows["topk_ids"], cells)
    steps = logit_steps(rows["topk_logits"], rows["logsumexp"], cells)
    return {
        "topk_id_codes": codes, "topk_id_order": chosen, "topk_logit_steps": steps.T,
        "tail_mass": rounded_mass(rows["tail_mass"]),
    }  # fmt: skip


def _blocks(rows: Rows) -> list[slice]:
    """Chunks of a shard: cells without padding stand in front of each."""
    starts = range(0, len(rows["num_kept"]), layout.CELL_CHUNK)
    return [slice(start, start + layout.CELL_CHUNK) for start in starts]


def _draws(rows: Rows, positions: IdPositions) -> dict[str, Array]:
    cells = kept_cells(rows["num_kept"], rows["sampled_ids"].shape[1])
    codes, chosen = positions.encode(rows["sampled_ids"], cells)
    parts = [packed_draws(codes[b], rows["sampled_counts"][b], cells[b]) for b in _blocks(rows)]
    steps, counts = (np.concatenate(part) for part in zip(*parts, strict=True))
    return {
        "sampled_place_steps": steps, "sampled_id_order": chosen, "sampled_place_counts": counts,
    }  # fmt: skip


def _head_draws(rows: Rows, positions: IdPositions) -> dict[str, Array]:
    ids, k = rows["sampled_ids"], rows["sampled_ids"].shape[1]
    cells, head = kept_cells(rows["num_kept"], k), kept_cells(rows["num_head"], k)
    codes, chosen = positions.encode(ids, cells)
    drawn, counts = cells & ~head, rows["sampled_counts"]
    parts = [packed_draws(codes[b], counts[b], drawn[b]) for b in _blocks(rows)]
    steps, packed = (np.concatenate(part) for part in zip(*parts, strict=True))
    heads = np.concatenate([to_cells(codes[b], head[b]) for b in _blocks(rows)])
    return {
        "head_id_codes": heads,
        "head_logit_steps": logit_steps(rows["head_logits"], rows["logsumexp"], head).T,
        "sampled_place_steps": steps, "sampled_place_counts": packed, "sampled_id_order": chosen,
        "drawn_mass": rounded_mass(rows["drawn_mass"]),
    }  # fmt: skip
