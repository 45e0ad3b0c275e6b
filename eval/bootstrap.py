"""Is the difference between two cascades more than the choice of test examples?

Legend: E examples, P points of a curve, B draws.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from caskd.eval.curves import defer_order, deferral_curve
from caskd.store.errors import UsageError

FloatArray = npt.NDArray[np.float64]

NUM_DRAWS = 1000
SEED = 0
_DRAWS_BYTES = 64 << 20


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Area under the first cascade's curve minus the second's, with a 95 % interval."""

    audc_difference: float
    low: float
    high: float
    num_draws: int
    seed: int

    @property
    def shown(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0.0 or self.high < 0.0

    @property
    def verdict(self) -> str:
        """The result in words."""
        if not self.shown:
            return "no difference shown"
        return "the first is better" if self.low > 0.0 else "the second is better"


def paired_difference(
    first: tuple[FloatArray, FloatArray],
    second: tuple[FloatArray, FloatArray],
    large_quality: FloatArray,
    *,
    num_draws: int = NUM_DRAWS,
    seed: int = SEED,
) -> Difference:
    """Bootstrap the difference in area under the deferral curve, over examples.

    Both cascades are measured on the same redrawn examples, so that hard examples hit both. The
    interval speaks of the examples only: another training seed can move the result further.

    Args:
        first: deferral score [E] and small quality [E] of one cascade.
        second: the same of the other, example by example.
        large_quality: [E] of the large model that both share.
        num_draws: B.
        seed: of the draws; equal seeds give equal intervals.

    Raises:
        UsageError: the two cascades differ in their number of examples.
    """
    if first[0].size != second[0].size:
        raise UsageError(
            f"got {first[0].size} and {second[0].size} examples, "
            "expected the same examples in both cascades"
        )
    areas = [_WeightedArea(score, small, large_quality) for score, small in (first, second)]
    num_examples = large_quality.size
    generator = np.random.default_rng(seed)
    tile = max(1, _DRAWS_BYTES // (8 * num_examples))
    draws = []
    for start in range(0, num_draws, tile):
        size = (min(tile, num_draws - start), num_examples)
        picks = generator.integers(0, num_examples, size=size)
        weights = np.stack([np.bincount(pick, minlength=num_examples) for pick in picks])
        draws.append(areas[0](weights) - areas[1](weights))
    low, high = np.quantile(np.concatenate(draws), [0.025, 0.975])
    measured = [
        deferral_curve(score, small, large_quality).audc for score, small in (first, second)
    ]
    return Difference(
        audc_difference=measured[0] - measured[1],
        low=float(low),
        high=float(high),
        num_draws=num_draws,
        seed=seed,
    )


class _WeightedArea:
    """Area under a deferral curve whose examples count `weights` times; sorts only once."""

    def __init__(self, score: FloatArray, small: FloatArray, large: FloatArray) -> None:
        self.order, self.ends = defer_order(score)
        self.small = small
        self.gain = (large - small)[self.order]

    def __call__(self, weights: npt.NDArray[np.int64]) -> FloatArray:
        """Areas [B] for weights [B, E]."""
        total = weights.sum(axis=1, keepdims=True)
        ordered = weights[:, self.order]
        rate = self._at_ends(ordered) / total
        quality = (weights @ self.small)[:, None] / total + self._at_ends(
            ordered * self.gain
        ) / total
        return np.asarray(np.trapezoid(quality, rate, axis=1))

    def _at_ends(self, values: npt.NDArray[np.number]) -> FloatArray:
        sums = np.cumsum(values, axis=1, dtype=np.float64)[:, self.ends[1:] - 1]
        return np.concatenate((np.zeros((len(sums), 1)), sums), axis=1)
