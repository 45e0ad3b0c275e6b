"""Is a difference more than the choice of training seeds? Student's t over the seeds alone.

With few seeds a bootstrap over them is too sure: it cannot see beyond the seeds that there are.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats
from scipy.stats import binomtest

FloatArray = npt.NDArray[np.float64]

SHARE = 0.95


@dataclass(frozen=True)
class SeedInterval:
    """A 95 % interval of a difference of means over seeds."""

    low: float
    high: float
    kind: str
    """`paired t`: the k-th seed of one arm belongs to the k-th of the other; `Welch t`: none do."""


def seed_interval(first: FloatArray, second: FloatArray) -> SeedInterval | None:
    """The interval of mean(first) - mean(second) for values [R] of the seeds of two arms.

    Seeds are paired where both arms have as many. Otherwise they are taken for independent, each
    arm with a variance of its own (Welch, 1947), which is wider where seeds do belong together.

    Returns:
        None where an arm has a single seed, which says nothing of the others.
    """
    if min(first.size, second.size) < 2:
        return None
    apart = float(first.mean() - second.mean())
    if first.size == second.size:
        error = float((first - second).std(ddof=1)) / math.sqrt(first.size)
        reach, kind = t_quantile(first.size - 1) * error, "paired t"
    else:
        parts = [one.var(ddof=1) / one.size for one in (first, second)]
        total = float(sum(parts))
        rest = sum(p**2 / (one.size - 1) for p, one in zip(parts, (first, second), strict=True))
        reach = t_quantile(total**2 / float(rest)) * math.sqrt(total) if rest > 0.0 else 0.0
        kind = "Welch t"
    return SeedInterval(apart - reach, apart + reach, kind)


def t_quantile(freedom: float) -> float:
    """The number that |t| stays below with probability 0.95, t being Student's.

    Args:
        freedom: degrees of freedom, not necessarily whole.
    """
    return float(stats.t.ppf((1.0 + SHARE) / 2.0, freedom))


LEVEL = 0.05


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


def mcnemar(first: FloatArray, second: FloatArray) -> McNemar:
    """Compare the qualities [E] of two systems; an answer is right at quality 1/2 or more."""
    ours, theirs = first >= 0.5, second >= 0.5
    only_first, only_second = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    trials = only_first + only_second
    return McNemar(
        only_first=only_first,
        only_second=only_second,
        p_value=float(binomtest(only_first, trials).pvalue) if trials else 1.0,
    )
