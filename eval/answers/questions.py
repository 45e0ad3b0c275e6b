"""Questions as units: answers to one question are not independent, however often it is asked.

Legend: E examples, Q questions.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
Units = IntArray | None
"""[E] index of the question of each example, from 0 to Q - 1; None if every question is unique."""


def question_units(digests: Sequence[str]) -> Units:
    """Units of resampling from the digest of each example's question.

    Args:
        digests: [E] equal for equal questions; an empty one makes its example a unit of its own.
    """
    own = [digest or f"\0{index}" for index, digest in enumerate(digests)]
    found, units = np.unique(np.array(own, dtype=object), return_inverse=True)
    return units.astype(np.int64) if found.size < len(own) else None


def num_units(units: Units, count: int) -> int:
    """Q, of `count` examples."""
    return count if units is None else int(np.unique(units).size)


def question_names(digests: Sequence[str], example_ids: Sequence[str]) -> list[str]:
    """A name for the question of each example: its digest, or without one the example's id."""
    return [digest or f"example {name}" for digest, name in zip(digests, example_ids, strict=True)]
