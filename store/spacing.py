"""Evenly spaced indices: a sample of shards or rows, or the points of a long curve."""

from typing import Literal

import numpy as np
import numpy.typing as npt


def thin(
    num_points: int, most: int, *, rounding: Literal["nearest", "down"] = "nearest"
) -> npt.NDArray[np.int64]:
    """Rising indices of at most `most` of `num_points` points, evenly spaced, both ends included.

    Args:
        num_points: points to choose from.
        most: points to keep; all of them if there are no more.
        rounding: how a position between two points becomes an index.
    """
    positions = np.linspace(0, num_points - 1, min(num_points, most))
    if rounding == "nearest":
        positions = positions.round()
    return np.unique(positions.astype(np.int64))
