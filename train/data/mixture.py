"""Mix several stores by weight: a low-discrepancy sequence chooses the store of each position.

Legend: S stores, E examples of all stores, concatenated, P positions.

The sequence is the lattice i * STRIDE mod LATTICE of two Fibonacci numbers (Niederreiter, Random
Number Generation and Quasi-Monte Carlo Methods, 1992). Each store owns an interval as long as its
share, and a position reads the store whose interval contains its point. Over LATTICE positions the
number of examples per store is exact; over any range of positions it is off by a few examples at
most. So every step has its share of every store. Each store runs through its own epochs.
"""

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np

from caskd.store.errors import UsageError
from caskd.train.data.order import ExampleOrder, IntArray, permutation

LATTICE, STRIDE = 10946, 6765


@dataclass(frozen=True, eq=False)
class MixedOrder:
    """The order of the examples of one or several stores.

    An example's number counts through the concatenated stores: `offsets[s]` + its index in store s.

    Attributes:
        orders: of each store [S].
        sizes: examples of each store [S], including examples without rows.
        weights: share of each store [S], up to a common factor.
        seed: of the sequence.
    """

    orders: tuple[ExampleOrder, ...]
    sizes: tuple[int, ...]
    weights: tuple[float, ...]
    seed: int

    @property
    def num_examples(self) -> int:
        """Examples with rows in all stores; with one store, the length of an epoch."""
        return sum(order.num_examples for order in self.orders)

    @property
    def num_blocks(self) -> int:
        """Shards with rows, in all stores."""
        return sum(len(order.blocks) for order in self.orders)

    @property
    def examples_per_window(self) -> int:
        """Average number of positions until some store enters its next window of blocks."""
        spans = zip(self.orders, shares(self.weights), strict=True)
        return max(1, int(min(order.examples_per_window / share for order, share in spans)))

    @cached_property
    def offsets(self) -> IntArray:
        """Number of the first example of each store, and the end, [S + 1]."""
        return np.cumsum([0, *self.sizes], dtype=np.int64)

    def stores_of(self, examples: IntArray) -> IntArray:
        """The store [P] of each example [P]."""
        return np.searchsorted(self.offsets, examples, side="right") - 1

    def at(self, positions: IntArray) -> IntArray:
        """Examples [P] at positions [P], counted from the start of the run."""
        which, own = turns(self.weights, self.seed, positions)
        found = np.empty(len(positions), np.int64)
        for store in np.unique(which):
            here = which == store
            found[here] = self.offsets[store] + self.orders[store].at(own[here])
        return found

    def examples_for_step(self, step: int, global_batch_size: int) -> IntArray:
        """The G examples of an optimizer step (0 is the first), over all ranks."""
        return self.at(np.arange(step * global_batch_size, (step + 1) * global_batch_size))


def shares(weights: tuple[float, ...]) -> list[float]:
    """Expected share of each store in the examples."""
    return [weight / math.fsum(weights) for weight in weights]


def turns(weights: tuple[float, ...], seed: int, positions: IntArray) -> tuple[IntArray, IntArray]:
    """The store [P] at positions [P], and the position [P] in that store's own order."""
    which, before, counts = _period(weights, seed)
    periods, slots = np.divmod(positions, LATTICE)
    return which[slots], periods * counts[which[slots]] + before[slots]


@lru_cache(maxsize=8)
def _period(weights: tuple[float, ...], seed: int) -> tuple[IntArray, IntArray, IntArray]:
    """For each slot of a period, its store and the number of earlier slots of that store; and the
    number of slots of each store in a period."""
    ends = np.rint(np.cumsum(shares(weights)) * LATTICE).astype(np.int64)
    first = int(permutation(LATTICE, seed)[0])
    points = (first + np.arange(LATTICE) * STRIDE) % LATTICE
    which = np.searchsorted(ends, points, side="right")
    counts = np.bincount(which, minlength=len(weights))
    before = np.empty(LATTICE, np.int64)
    for store, count in enumerate(counts):
        before[which == store] = np.arange(count)
    return which, before, counts


def parse_store(text: str) -> tuple[str, float]:
    """URL and weight of a store given as URL or URL=weight.

    Raises:
        UsageError: the weight is not above 0.
    """
    url, equals, tail = text.rpartition("=")
    try:
        weight = float(tail) if equals and not Path(text).exists() else None
    except ValueError:
        weight = None
    if weight is None:
        return text, 1.0
    if not 0 < weight < math.inf:
        raise UsageError(
            f"--store {text}: the weight is {tail}; expected a number above 0; pass STORE=WEIGHT "
            "with such a weight"
        )
    return url, weight


def check_weights(weights: tuple[float, ...]) -> None:
    """Refuse a weight so small that its store would never be read.

    Raises:
        UsageError: a weight is too small.
    """
    smallest = min(shares(weights))
    if smallest < 2 / LATTICE:
        raise UsageError(
            f"--store: the smallest weight is a share of {smallest:.1e}; expected at least "
            f"{2 / LATTICE:.1e}; remove that store, or raise its weight"
        )
