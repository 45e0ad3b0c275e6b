"""McNemar's test: two systems on the same examples, counted where exactly one of them is right."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest

FloatArray = npt.NDArray[np.float64]

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
