"""Several stores as one: which example of which store is read when.

Legend: S stores, E examples of all stores, one store behind the other, P positions.

Each store runs through its own epochs; the weights say whose turn it is. Turns follow a lattice of
Fibonacci numbers (Niederreiter, Random Number Generation and Quasi-Monte Carlo Methods, 1992): the
counts over LATTICE positions are exact, and those over any stretch are off by a few examples at
most, so that every step has its share of every store.
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

    An example's number counts through all stores: `offsets[s]` + its index in store s.

    Attributes:
        orders: of each store [S].
        sizes: examples of each store [S], those without rows included.
        weights: share of each store [S], up to a common factor.
        seed: of the turns.
    """

    orders: tuple[ExampleOrder, ...]
    sizes: tuple[int, ...]
    weights: tuple[float, ...]
    seed: int

    @property
    def num_examples(self) -> int:
        """Examples that have rows, in all stores: the length of an epoch where there is one."""
        return sum(order.num_examples for order in self.orders)

    @property
    def num_blocks(self) -> int:
        """Shards that have rows, in all stores."""
        return sum(len(order.blocks) for order in self.orders)

    @property
    def examples_per_window(self) -> int:
        """Positions after which some store comes to its next window of blocks, on average."""
        spans = zip(self.orders, shares(self.weights), strict=True)
        return max(1, int(min(order.examples_per_window / share for order, share in spans)))

    @cached_property
    def offsets(self) -> IntArray:
        """Number of the first example of each store, and of the end, [S + 1]."""
        return np.cumsum([0, *self.sizes], dtype=np.int64)

    def stores_of(self, examples: IntArray) -> IntArray:
        """The store [P] that each example [P] lies in."""
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
        """The G examples of an optimizer step (0 is the first), whoever computes them."""
        return self.at(np.arange(step * global_batch_size, (step + 1) * global_batch_size))


def shares(weights: tuple[float, ...]) -> list[float]:
    """Expected share of each store in the examples."""
    return [weight / math.fsum(weights) for weight in weights]


def turns(weights: tuple[float, ...], seed: int, positions: IntArray) -> tuple[IntArray, IntArray]:
    """Which store has its turn at positions [P], and the position [P] in that store's own order."""
    which, before, counts = _period(weights, seed)
    periods, slots = np.divmod(positions, LATTICE)
    return which[slots], periods * counts[which[slots]] + before[slots]


@lru_cache(maxsize=8)
def _period(weights: tuple[float, ...], seed: int) -> tuple[IntArray, IntArray, IntArray]:
    """For each slot of a period: its store, and how often that store came before in the period;
    and how often each store comes in all."""
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
    """Place and weight of a store given as URL or URL=weight.

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
        raise UsageError(f"--store {text}: the weight is {tail}; expected a number above 0.")
    return url, weight


def check_weights(weights: tuple[float, ...]) -> None:
    """Refuse a weight so small that its store would never have its turn.

    Raises:
        UsageError: there is one.
    """
    smallest = min(shares(weights))
    if smallest < 2 / LATTICE:
        raise UsageError(
            f"--store: the smallest weight is a share of {smallest:.1e}; expected at least "
            f"{2 / LATTICE:.1e}. Leave that store out, or give it a larger weight."
        )
