"""Is a difference more than the choice of test examples, and of training seeds?

Legend: E examples, P points of a curve, B draws, S series (a score with the small model's quality),
R seeds.

Up to `EXACT_UP_TO` examples a draw redraws the examples and measures every curve again. Above, the
area's first-order term is redrawn instead: the area is a ratio of sums over pairs of examples, so
that what is left out is of order 1/E where the interval's width is of order 1/sqrt(E).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from caskd.eval.curves import defer_order
from caskd.eval.stats.intervals import SeedInterval, seed_interval
from caskd.store.errors import UsageError

FloatArray = npt.NDArray[np.float64]
Series = tuple[FloatArray, FloatArray]
"""Deferral score [E] and small quality [E] of one cascade."""

NUM_DRAWS = 1000
SEED = 0
EXACT_UP_TO = 20_000
_DRAWS_BYTES = 64 << 20
_POISSON_BITS = 16


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A measure of the first cascade minus that of the second, with 95 % intervals."""

    value: float
    low: float
    high: float
    num_draws: int
    seed: int
    num_seeds: int = 1
    """Training seeds of each arm that were redrawn too; with 1 the examples alone were."""
    over_seeds: SeedInterval | None = None
    """Over the seeds alone, where both arms have several."""
    lower_is_better: bool = False
    """Whether the first is better where the difference is below zero."""

    @property
    def shown(self) -> bool:
        """Whether every interval leaves out zero."""
        ends = [(self.low, self.high)]
        if self.over_seeds is not None:
            ends.append((self.over_seeds.low, self.over_seeds.high))
        return all(low > 0.0 for low, _ in ends) or all(high < 0.0 for _, high in ends)

    @property
    def verdict(self) -> str:
        """The result in words."""
        if not self.shown:
            return "no difference shown"
        first = (self.low > 0.0) != self.lower_is_better
        return "the first is better" if first else "the second is better"


def arm_difference(
    first: tuple[FloatArray, FloatArray],
    second: tuple[FloatArray, FloatArray],
    *,
    lower_is_better: bool = False,
    seed: int = SEED,
) -> Difference:
    """Difference of the mean of a measure over two arms, from draws that share their examples.

    Args:
        first: the measure [R] of one arm's seeds, and its draws [R, B].
        second: the same of the other; seeds are redrawn in pairs where both have as many.
        lower_is_better: whether the measure is a cost.
        seed: of the seeds that are redrawn.
    """
    counts = len(first[0]), len(second[0])
    generator = np.random.default_rng([seed, 1])
    num_draws = first[1].shape[1]
    ours = generator.integers(0, counts[0], size=(counts[0], num_draws))
    theirs = ours
    if counts[0] != counts[1]:
        theirs = generator.integers(0, counts[1], size=(counts[1], num_draws))
    means = [
        np.take_along_axis(draws, picks, axis=0).mean(axis=0)
        for (_, draws), picks in ((first, ours), (second, theirs))
    ]
    low, high = interval(means[0] - means[1])
    return Difference(
        value=float(first[0].mean() - second[0].mean()),
        low=low,
        high=high,
        num_draws=num_draws,
        seed=seed,
        num_seeds=min(counts),
        over_seeds=seed_interval(first[0], second[0]),
        lower_is_better=lower_is_better,
    )


def interval(draws: FloatArray) -> tuple[float, float]:
    """The middle 95 % of the draws [B]."""
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)


def area_draws(
    series: Sequence[Series],
    large_quality: FloatArray,
    *,
    num_draws: int = NUM_DRAWS,
    seed: int = SEED,
    exact: bool | None = None,
) -> FloatArray:
    """Areas [S, B] under the curves of several cascades, all on the same redrawn examples.

    Args:
        series: scores and small qualities, example by example.
        large_quality: [E] of the large model that all share.
        num_draws: B.
        seed: of the draws.
        exact: whether to measure every curve anew; by default up to `EXACT_UP_TO` examples.

    Raises:
        UsageError: the series differ in their number of examples.
    """
    count = large_quality.size
    for score, small in series:
        if not score.size == small.size == count:
            raise UsageError(
                f"got {score.size} and {count} examples, "
                "expected the same examples in both cascades"
            )
    if exact is None:
        exact = count <= EXACT_UP_TO
    if exact:
        areas = [WeightedArea(score, small, large_quality) for score, small in series]
        tiles = [
            np.stack([area(weights) for area in areas])
            for weights in _redrawn(count, num_draws, seed)
        ]
        return np.concatenate(tiles, axis=1)
    influence = np.empty((len(series), count), dtype=np.float32)
    at_hand = np.empty(len(series))
    for place, (score, small) in enumerate(series):
        at_hand[place], influence[place] = area_influence(score, small, large_quality)
    tiles = [
        (influence @ weights.T / weights.sum(axis=1, dtype=np.float64)).astype(np.float64)
        for weights in _poisson(count, num_draws, seed)
    ]
    return at_hand[:, None] + np.concatenate(tiles, axis=1)


def mean_draws(values: FloatArray, *, num_draws: int = NUM_DRAWS, seed: int = SEED) -> FloatArray:
    """Means [S, B] of several quantities [S, E] over redrawn examples."""
    count = values.shape[1]
    if count <= EXACT_UP_TO:
        tiles = [values @ weights.T / count for weights in _redrawn(count, num_draws, seed)]
        return np.concatenate(tiles, axis=1)
    means = values.mean(axis=1, keepdims=True)
    centered = (values - means).astype(np.float32)
    tiles = [
        (centered @ weights.T / weights.sum(axis=1, dtype=np.float64)).astype(np.float64)
        for weights in _poisson(count, num_draws, seed)
    ]
    return np.asarray(means + np.concatenate(tiles, axis=1))


def area_influence(
    score: FloatArray, small: FloatArray, large: FloatArray
) -> tuple[float, FloatArray]:
    """The area, and by how much each example's weight moves it, [E], summing to zero.

    The area is mean(small) + sum_ij gain_i h_ij / E^2, where h_ij is 1 where j is deferred after i,
    1/2 where both are deferred together, else 0. The influence is E times its derivative by a
    weight, at equal weights.
    """
    count = score.size
    order, ends = defer_order(score, small, large)
    gain = (large - small)[order]
    sizes = np.diff(ends)
    gains = np.add.reduceat(gain, ends[:-1])
    after = (count - (ends[:-1] + ends[1:]) / 2.0) / count  # share deferred later, per block
    before = (np.cumsum(gains) - gains / 2.0) / count  # gain of those deferred sooner
    pairs = float(gains @ after) / count
    moved = small[order] - small.mean() + gain * np.repeat(after, sizes)
    moved += np.repeat(before, sizes) - 2.0 * pairs
    influence = np.empty(count)
    influence[order] = moved
    return float(small.mean()) + pairs, influence


class WeightedArea:
    """Area under a deferral curve whose examples count `weights` times; sorts only once."""

    def __init__(self, score: FloatArray, small: FloatArray, large: FloatArray) -> None:
        self.order, ends = defer_order(score)
        self.starts = ends[:-1] if ends.size <= score.size else None  # None: no two scores equal
        self.small = small
        self.gain = (large - small)[self.order]

    def __call__(self, weights: FloatArray) -> FloatArray:
        """Areas [B] for weights [B, E].

        A block of weight m and gain G adds G * (m / 2 + the weight deferred after it) / total^2.
        """
        total = np.maximum(weights.sum(axis=1), 1.0)  # a small task may not be drawn at all
        sizes = np.take(weights, self.order, axis=1)
        gains = sizes * self.gain
        if self.starts is not None:
            sizes, gains = (np.add.reduceat(part, self.starts, axis=1) for part in (sizes, gains))
        after = total[:, None] - np.cumsum(sizes, axis=1) + sizes / 2.0
        pairs = np.einsum("bp,bp->b", gains, after)
        return np.asarray(weights @ self.small / total + pairs / total**2)


def example_weights(
    count: int, num_draws: int, seed: int
) -> Iterator[npt.NDArray[np.float64] | npt.NDArray[np.float32]]:
    """How often each draw holds each example, in tiles [., E]: the same ones at every call."""
    exact = count <= EXACT_UP_TO
    return (_redrawn if exact else _poisson)(count, num_draws, seed)


def _redrawn(count: int, num_draws: int, seed: int) -> Iterator[FloatArray]:
    """How often each example is drawn, in tiles [., E] of B draws with replacement."""
    generator = np.random.default_rng(seed)
    tile = max(1, _DRAWS_BYTES // (8 * count))
    for start in range(0, num_draws, tile):
        size = (min(tile, num_draws - start), count)
        picks = generator.integers(0, count, size=size)
        yield np.stack([np.bincount(pick, minlength=count).astype(np.float64) for pick in picks])


def _poisson(count: int, num_draws: int, seed: int) -> Iterator[npt.NDArray[np.float32]]:
    """Independent Poisson(1) weights, in tiles [., E]: the bootstrap where E is large.

    Read from a table by 16 random bits each, ten times as fast as drawing them one by one; each
    probability is right to 2^-16.
    """
    chances = np.cumsum(np.exp(-1.0) / np.cumprod([1.0, *range(1, 12)]))
    levels = (np.arange(2**_POISSON_BITS) + 0.5) / 2**_POISSON_BITS
    table = np.searchsorted(chances, levels).astype(np.float32)
    generator = np.random.default_rng(seed)
    tile = max(1, _DRAWS_BYTES // (4 * count))
    for start in range(0, num_draws, tile):
        size = (min(tile, num_draws - start), count)
        yield table[generator.integers(0, 2**_POISSON_BITS, size=size, dtype=np.uint16)]
