"""Classical tests besides the bootstrap: Student's t over training seeds, McNemar's over examples.

With few seeds a bootstrap over seeds gives intervals that are too narrow: it cannot see beyond the
seeds at hand. Student's t over the seeds alone can.
"""

import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.signal import convolve
from scipy.stats import binom, binomtest, ttest_ind, ttest_rel

from caskd.eval.answers import Units

FloatArray = npt.NDArray[np.float64]

CONFIDENCE = 0.95
LEVEL = 0.05


@dataclass(frozen=True)
class SeedInterval:
    """A 95 % interval of a difference of means over seeds."""

    low: float
    high: float
    kind: str
    """`paired t`: the k-th seed of one arm pairs with the k-th of the other. `Welch t`: not."""


def seed_interval(first: FloatArray, second: FloatArray) -> SeedInterval | None:
    """The interval of mean(first) - mean(second) for values [R] of the seeds of two arms.

    Seeds are paired if both arms have equally many. Otherwise they count as independent, each arm
    with a variance of its own (Welch, 1947), which is wider if seeds do belong together.

    Returns:
        None if an arm has a single seed, which has no variance.
    """
    if min(first.size, second.size) < 2:
        return None
    paired = first.size == second.size
    with warnings.catch_warnings():
        # scipy warns if all values are equal; the interval is then one point, as it should be.
        warnings.simplefilter("ignore", RuntimeWarning)
        test = ttest_rel(first, second) if paired else ttest_ind(first, second, equal_var=False)
    ends = test.confidence_interval(CONFIDENCE)
    return SeedInterval(float(ends.low), float(ends.high), "paired t" if paired else "Welch t")


@dataclass(frozen=True, kw_only=True)
class McNemar:
    """Counts of the examples on which two systems disagree, and how likely that is by chance."""

    only_first: int
    """Examples that the first system alone gets right."""
    only_second: int
    """Examples that the second system alone gets right."""
    p_value: float
    """Exact and two-sided: chance of a split at least this uneven between equal systems."""

    @property
    def verdict(self) -> str:
        """The result in words."""
        if self.p_value >= LEVEL:
            return "no difference shown"
        return (
            "the first is better" if self.only_first > self.only_second else "the second is better"
        )


def mcnemar(first: FloatArray, second: FloatArray, units: Units = None) -> McNemar:
    """Compare the qualities [E] of two systems; an answer is right at quality 1/2 or more.

    Between equal systems, each question is as likely to favour one as the other: the test flips the
    sign of each question's net count. With one example per question it is McNemar's exact test.

    Args:
        first: quality of the first system.
        second: quality of the second.
        units: question of each example.
    """
    first_right, second_right = first >= 0.5, second >= 0.5
    only_first = int((first_right & ~second_right).sum())
    only_second = int((second_right & ~first_right).sum())
    trials = only_first + only_second
    if units is not None:
        net = np.bincount(units, weights=first_right.astype(np.float64) - second_right)
        p_value = flip_p_value(net.round().astype(np.int64))
    else:
        p_value = float(binomtest(only_first, trials).pvalue) if trials else 1.0
    return McNemar(only_first=only_first, only_second=only_second, p_value=p_value)


def flip_p_value(net: npt.NDArray[np.int64]) -> float:
    """Exact two-sided p-value of a sum of integers [Q] whose signs are equally likely.

    With integers of one size it is the exact binomial test. Counts of equal size are summed as
    binomials, so that the cost depends on the number of different sizes.
    """
    sizes, counts = np.unique(np.abs(net[net != 0]), return_counts=True)
    total = np.ones(1)  # chance of each sum, from the least up in steps of 2
    for size, count in zip(sizes.tolist(), counts.tolist(), strict=True):
        chances = np.zeros(count * size + 1)
        chances[::size] = binom.pmf(np.arange(count + 1), count, 0.5)
        total = convolve(total, chances)
    sums = 2 * np.arange(total.size) - (total.size - 1)
    found = total[np.abs(sums) >= abs(int(net.sum()))].sum()
    return float(np.clip(found, 0.0, 1.0))
