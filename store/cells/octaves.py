"""Octaves of ranks: 0, 1, 2-3, 4-7, 8-15, and so on.

Legend: N rows, k cells per row.

The cells of one octave have similar values, so a codec compresses each octave apart. Rows with
fewer than k cells leave no gaps: inside an octave, the cells that exist stand in front.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

_FIRST_SORTED = 16  # octaves from this place on are sorted; before it, the sequence matters more


def octaves(k: int) -> Iterator[tuple[int, int]]:
    """First rank and end of each octave of k ranks."""
    start = 0
    while start < k:
        stop = min(k, max(1, 2 * start))
        yield start, stop
        start = stop


def to_front(
    values: npt.NDArray[Any], cells: npt.NDArray[np.bool_], parts: Iterable[tuple[int, int]]
) -> npt.NDArray[Any]:
    """Move the cells of each part to its front, zeros behind them.

    Args:
        values: [m, n].
        cells: [m, n], False where there is no cell.
        parts: first line and end of each part; together they cover all m.
    """
    if cells.all():
        return values
    packed = np.zeros(values.shape, values.dtype)
    for start, stop in parts:
        kept = values[start:stop][cells[start:stop]]
        packed[start:stop].reshape(-1)[: len(kept)] = kept
    return packed


def from_front(
    packed: npt.NDArray[Any], cells: npt.NDArray[np.bool_], parts: Iterable[tuple[int, int]]
) -> npt.NDArray[Any]:
    """Undo `to_front`: [m, n], 0 where there is no cell."""
    if cells.all():
        return packed
    values = np.zeros(packed.shape, packed.dtype)
    for start, stop in parts:
        inside = cells[start:stop]
        values[start:stop][inside] = packed[start:stop].reshape(-1)[: np.count_nonzero(inside)]
    return values


def sorted_steps(numbers: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    """Sort each row [C, M] inside its octaves from 16 on; the first number and then differences."""
    steps = numbers.copy()
    for start, stop in octaves(numbers.shape[1]):
        if start >= _FIRST_SORTED:
            part = np.sort(numbers[:, start:stop], axis=1)
            part[:, 1:] -= part[:, :-1].copy()
            steps[:, start:stop] = part
    return steps


def from_sorted_steps(steps: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    """Undo the differences of `sorted_steps`; the numbers stay sorted inside octaves."""
    numbers = steps.copy()
    for start, stop in octaves(steps.shape[1]):
        if start >= _FIRST_SORTED:
            part = numbers[:, start:stop]
            np.cumsum(part, axis=1, out=part)
    return numbers


def run_sums(steps: npt.NDArray[Any], tied: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
    """Numbers [m, n] of runs along the first axis, in the dtype of the steps.

    Args:
        steps: [m, n]: the first number of each run, then differences less 1; overwritten.
        tied: [m, n], whether a cell goes on with the run of the cell before it.
    """
    going, both, add = tied.astype(steps.dtype), np.bitwise_and, np.add
    np.add(steps, going, out=steps)
    np.negative(going, out=going)  # all bits where a run goes on
    before, last = np.empty(steps.shape[1:], steps.dtype), None
    for line, run in zip(steps, going, strict=True):  # short calls: positional, no lookups
        if last is not None:
            both(last, run, before)
            add(line, before, line)
        last = line
    return steps
