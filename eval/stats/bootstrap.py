"""Paired bootstrap: is a difference larger than the variation over test examples and seeds?

Legend: E examples, P points of a curve, B bootstrap replicates, R seeds, S series (a score with the
small model's quality).

Up to `EXACT_UP_TO` examples, each replicate resamples the examples and measures every curve again.
Above, it resamples the first-order term of the area: the area is a ratio of sums over pairs of
examples, so the omitted terms are of order 1/E, while the interval's width is of order 1/sqrt(E).
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

NUM_REPLICATES = 1000
SEED = 0
EXACT_UP_TO = 20_000
_TILE_BYTES = 64 << 20
_POISSON_BITS = 16


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A figure of the first cascade minus that of the second, with 95 % intervals."""

    value: float
    low: float
    high: float
    num_replicates: int
    seed: int
    num_seeds: int = 1
    """Training seeds of each arm, resampled too; with 1 only examples are resampled."""
    over_seeds: SeedInterval | None = None
    """Interval over the seeds alone, if both arms have several."""
    lower_is_better: bool = False
    """Whether a difference below zero means that the first is better."""

    @property
    def shown(self) -> bool:
        """Whether every interval excludes zero."""
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
    """Difference between two arms in the mean of a figure, from replicates that share examples.

    Args:
        first: the figure [R] of each seed of one arm, and its replicates [R, B].
        second: the same for the other arm; seeds are resampled in pairs if both have equally many.
        lower_is_better: whether the figure is a cost.
        seed: random seed for resampling the training seeds.
    """
    counts = len(first[0]), len(second[0])
    generator = np.random.default_rng([seed, 1])
    num_replicates = first[1].shape[1]
    ours = generator.integers(0, counts[0], size=(counts[0], num_replicates))
    theirs = ours
    if counts[0] != counts[1]:
        theirs = generator.integers(0, counts[1], size=(counts[1], num_replicates))
    means = [
        np.take_along_axis(replicates, picks, axis=0).mean(axis=0)
        for (_, replicates), picks in ((first, ours), (second, theirs))
    ]
    low, high = interval(means[0] - means[1])
    return Difference(
        value=float(first[0].mean() - second[0].mean()),
        low=low,
        high=high,
        num_replicates=num_replicates,
        seed=seed,
        num_seeds=min(counts),
        over_seeds=seed_interval(first[0], second[0]),
        lower_is_better=lower_is_better,
    )


def interval(replicates: FloatArray) -> tuple[float, float]:
    """The middle 95 % of the replicates [B]."""
    low, high = np.quantile(replicates, [0.025, 0.975])
    return float(low), float(high)


def area_replicates(
    series: Sequence[Series],
    large_quality: FloatArray,
    *,
    num_replicates: int = NUM_REPLICATES,
    seed: int = SEED,
    exact: bool | None = None,
) -> FloatArray:
    """Areas [S, B] under the curves of several cascades, all on the same resampled examples.

    Args:
        series: scores and qualities of each small model on the same examples.
        large_quality: [E] quality of the large model, which all cascades share.
        num_replicates: B.
        seed: random seed of the replicates.
        exact: whether to measure every curve again; by default up to `EXACT_UP_TO` examples.

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
            for weights in _multinomial_weights(count, num_replicates, seed)
        ]
        return np.concatenate(tiles, axis=1)
    influence = np.empty((len(series), count), dtype=np.float32)
    at_hand = np.empty(len(series))
    for index, (score, small) in enumerate(series):
        at_hand[index], influence[index] = area_influence(score, small, large_quality)
    tiles = [
        (influence @ weights.T / weights.sum(axis=1, dtype=np.float64)).astype(np.float64)
        for weights in _poisson_weights(count, num_replicates, seed)
    ]
    return at_hand[:, None] + np.concatenate(tiles, axis=1)


def mean_replicates(
    values: FloatArray, *, num_replicates: int = NUM_REPLICATES, seed: int = SEED
) -> FloatArray:
    """Means [S, B] of several quantities [S, E] over resampled examples."""
    count = values.shape[1]
    if count <= EXACT_UP_TO:
        tiles = [
            values @ weights.T / count
            for weights in _multinomial_weights(count, num_replicates, seed)
        ]
        return np.concatenate(tiles, axis=1)
    means = values.mean(axis=1, keepdims=True)
    centered = (values - means).astype(np.float32)
    tiles = [
        (centered @ weights.T / weights.sum(axis=1, dtype=np.float64)).astype(np.float64)
        for weights in _poisson_weights(count, num_replicates, seed)
    ]
    return np.asarray(means + np.concatenate(tiles, axis=1))


def area_influence(
    score: FloatArray, small: FloatArray, large: FloatArray
) -> tuple[float, FloatArray]:
    """The area, and the influence [E] of each example's weight on it; influences sum to zero.

    The area is mean(small) + sum_ij gain_i h_ij / E^2, where h_ij is 1 if j is deferred after i,
    1/2 if both are deferred together, else 0. The influence is E times the derivative with respect
    to a weight, at equal weights.
    """
    count = score.size
    order, ends = defer_order(score, small, large)
    gain = (large - small)[order]
    sizes = np.diff(ends)
    gains = np.add.reduceat(gain, ends[:-1])
    after = (count - (ends[:-1] + ends[1:]) / 2.0) / count  # share deferred later, per block
    before = (np.cumsum(gains) - gains / 2.0) / count  # gain of those deferred earlier
    pairs = float(gains @ after) / count
    moved = small[order] - small.mean() + gain * np.repeat(after, sizes)
    moved += np.repeat(before, sizes) - 2.0 * pairs
    influence = np.empty(count)
    influence[order] = moved
    return float(small.mean()) + pairs, influence


class WeightedArea:
    """Area under a deferral curve with weighted examples; sorts the examples only once."""

    def __init__(self, score: FloatArray, small: FloatArray, large: FloatArray) -> None:
        self.order, ends = defer_order(score)
        self.starts = ends[:-1] if ends.size <= score.size else None  # None: no equal scores
        self.small = small
        self.gain = (large - small)[self.order]

    def __call__(self, weights: FloatArray) -> FloatArray:
        """Areas [B] for weights [B, E].

        A block of weight m and gain G adds G * (m / 2 + the weight deferred after it) / total^2.
        """
        total = np.maximum(weights.sum(axis=1), 1.0)  # a replicate may miss a small task
        sizes = np.take(weights, self.order, axis=1)
        gains = sizes * self.gain
        if self.starts is not None:
            sizes, gains = (np.add.reduceat(part, self.starts, axis=1) for part in (sizes, gains))
        after = total[:, None] - np.cumsum(sizes, axis=1) + sizes / 2.0
        pairs = np.einsum("bp,bp->b", gains, after)
        return np.asarray(weights @ self.small / total + pairs / total**2)


def example_weights(
    count: int, num_replicates: int, seed: int
) -> Iterator[npt.NDArray[np.float64] | npt.NDArray[np.float32]]:
    """How often each replicate holds each example, in tiles [., E]; equal for equal arguments."""
    exact = count <= EXACT_UP_TO
    return (_multinomial_weights if exact else _poisson_weights)(count, num_replicates, seed)


def _multinomial_weights(count: int, num_replicates: int, seed: int) -> Iterator[FloatArray]:
    """How often each replicate samples each example, with replacement, in tiles [., E]."""
    generator = np.random.default_rng(seed)
    tile = max(1, _TILE_BYTES // (8 * count))
    for start in range(0, num_replicates, tile):
        size = (min(tile, num_replicates - start), count)
        picks = generator.integers(0, count, size=size)
        yield np.stack([np.bincount(pick, minlength=count).astype(np.float64) for pick in picks])


def _poisson_weights(
    count: int, num_replicates: int, seed: int
) -> Iterator[npt.NDArray[np.float32]]:
    """Independent Poisson(1) weights, in tiles [., E]: the bootstrap for large E.

    16 random bits index a table, which is ten times as fast as sampling one by one; each
    probability is exact to 2^-16.
    """
    chances = np.cumsum(np.exp(-1.0) / np.cumprod([1.0, *range(1, 12)]))
    levels = (np.arange(2**_POISSON_BITS) + 0.5) / 2**_POISSON_BITS
    table = np.searchsorted(chances, levels).astype(np.float32)
    generator = np.random.default_rng(seed)
    tile = max(1, _TILE_BYTES // (4 * count))
    for start in range(0, num_replicates, tile):
        size = (min(tile, num_replicates - start), count)
        yield table[generator.integers(0, 2**_POISSON_BITS, size=size, dtype=np.uint16)]
