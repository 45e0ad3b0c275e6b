"""The order of examples: a pure function of (seed, epoch, position), for any number of ranks.

Legend: E examples that have rows, P positions, B examples of a reader's batch.

Reads stay near-sequential: shards are visited in a random order, a window of a few shards at a
time, and examples are shuffled within a window. One epoch follows the previous one without a gap,
so that every step has the same number of examples.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]

WINDOW_BLOCKS = 4
"""Shards shuffled together. Four top-k shards of 64 cells fit the store's chunk cache."""


def permutation(size: int, *key: int) -> IntArray:
    """A permutation of range(size) that depends on `key` alone.

    It sorts the raw stream of a bit generator, which numpy keeps unchanged in all versions. The
    stream of `Generator.permutation` may change (NEP 19).
    """
    keys = np.random.Philox(np.random.SeedSequence(key)).random_raw(size)
    return np.argsort(keys, kind="stable").astype(np.int64)


@dataclass(frozen=True, eq=False)
class ExampleOrder:
    """The order of one store's examples.

    Attributes:
        blocks: examples [E_b] with rows of each block, in store order.
        seed: of the shuffle.
        store: number of the store. Each store of a mixture has its own shuffle.
    """

    blocks: tuple[IntArray, ...]
    seed: int
    store: int = 0

    @property
    def num_examples(self) -> int:
        """E, the length of an epoch."""
        return sum(map(len, self.blocks))

    @property
    def examples_per_window(self) -> int:
        """Examples of a window of blocks, on average."""
        return max(1, self.num_examples * WINDOW_BLOCKS // max(len(self.blocks), WINDOW_BLOCKS))

    def at(self, positions: IntArray) -> IntArray:
        """Example indices [P] at positions [P], counted from the start of the first epoch."""
        epochs, offsets = np.divmod(positions, self.num_examples)
        found = np.empty(len(positions), np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            found[here] = self._in_epoch(int(epoch), offsets[here])
        return found

    def _in_epoch(self, epoch: int, offsets: IntArray) -> IntArray:
        windows, ends = _windows(self, epoch)
        found = np.empty(len(offsets), np.int64)
        which = np.searchsorted(ends, offsets, side="right")
        for window in np.unique(which):
            here = which == window
            start = ends[window - 1] if window else 0
            shuffled = _shuffled_window(self, epoch, int(window), windows[window])
            found[here] = shuffled[offsets[here] - start]
        return found


@lru_cache(maxsize=4)
def _windows(order: ExampleOrder, epoch: int) -> tuple[list[tuple[int, ...]], IntArray]:
    """The blocks of each window of an epoch, and the position at which each window ends."""
    visit = permutation(len(order.blocks), order.seed, epoch, 0, order.store)
    windows = [
        tuple(int(b) for b in visit[i : i + WINDOW_BLOCKS])
        for i in range(0, len(visit), WINDOW_BLOCKS)
    ]
    sizes = [sum(len(order.blocks[b]) for b in window) for window in windows]
    return windows, np.cumsum(sizes, dtype=np.int64)


@lru_cache(maxsize=4)
def _shuffled_window(
    order: ExampleOrder, epoch: int, window: int, blocks: tuple[int, ...]
) -> IntArray:
    examples = np.concatenate([order.blocks[b] for b in blocks])
    return examples[permutation(len(examples), order.seed, epoch, 1 + window, order.store)]


def blocks_of(
    row_counts: npt.NDArray[np.int32], row_starts: IntArray, shard_rows: int
) -> tuple[IntArray, ...]:
    """The examples [E_b] with rows of each shard that has any, in store order."""
    examples = np.flatnonzero(row_counts).astype(np.int64)
    if not len(examples):
        return ()
    shards = row_starts[examples] // shard_rows
    return tuple(np.split(examples, np.flatnonzero(np.diff(shards)) + 1))


def stream_positions(
    span: range, *, batch_size: int, rank: int, world_size: int, worker: int, num_workers: int
) -> Iterator[IntArray]:
    """Batches of positions [B] of one reader; several readers share a range of positions.

    Batches are dealt to the ranks in turn, and the batches of a rank to its workers in turn. A
    DataLoader takes them in that order, so the batches are the same for any number of workers. The
    last round, if it is not full, is divided evenly among the ranks.
    """
    per_round = batch_size * world_size
    for number in range(worker, -(-len(span) // per_round), num_workers):
        whole = span[number * per_round : (number + 1) * per_round]
        first, end = rank * len(whole) // world_size, (rank + 1) * len(whole) // world_size
        mine = np.asarray(whole[first:end], np.int64)
        if len(mine):
            yield mine
