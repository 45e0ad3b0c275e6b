"""Two cascades compared as `caskd eval` does it, and examples redrawn by hand."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from caskd.eval.curves import deferral_curve
from caskd.eval.stats import NUM_DRAWS, SEED, Difference, Series, area_draws, arm_difference
from caskd.eval.stats.bootstrap import FloatArray


def paired_difference(
    first: Series | Sequence[Series],
    second: Series | Sequence[Series],
    large_quality: FloatArray,
    *,
    num_draws: int = NUM_DRAWS,
    seed: int = SEED,
) -> Difference:
    """Bootstrap the difference in area under the deferral curve, over examples and seeds.

    Both cascades are measured on the same redrawn examples, so that hard examples hit both. Where
    an arm has several seeds they are redrawn too, the first arm's k-th with the second arm's.

    Args:
        first: deferral score [E] and small quality [E] of one cascade, or one such pair per seed.
        second: the same of the other, example by example.
        large_quality: [E] of the large model that both share.
        num_draws: B.
        seed: of the draws; equal seeds give equal intervals.

    Raises:
        UsageError: the two cascades differ in their number of examples.
    """
    ours, theirs = (_seeds(arm) for arm in (first, second))
    series = [*ours, *theirs]
    draws = area_draws(series, large_quality, num_draws=num_draws, seed=seed)
    areas = np.array([deferral_curve(score, small, large_quality).audc for score, small in series])
    split = len(ours)
    return arm_difference((areas[:split], draws[:split]), (areas[split:], draws[split:]), seed=seed)


def _seeds(arm: Series | Sequence[Series]) -> list[Series]:
    return [arm] if isinstance(arm, tuple) else list(arm)


def repeated_examples(
    places: npt.NDArray[np.int64], weights: FloatArray, *parts: FloatArray
) -> list[FloatArray]:
    """Of arrays [E] the values at `places`, each as often as its weight [E] says."""
    counts = weights[places].astype(int)
    return [np.repeat(part[places], counts) for part in parts]
