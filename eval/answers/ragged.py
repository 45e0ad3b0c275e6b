"""Rows of numbers of different lengths, one per example: the form of every per-token column.

Legend: E examples, T values of all rows together.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Ragged:
    """Rows of numbers, one after another; statistics work on all rows at once."""

    values: FloatArray
    """[T] all rows, one after another."""
    offsets: IntArray
    """[E + 1] where each row starts, and T."""

    @classmethod
    def of(cls, rows: Sequence[npt.ArrayLike]) -> "Ragged":
        """From one sequence of numbers per example."""
        arrays = [np.asarray(row, dtype=np.float64).ravel() for row in rows]
        lengths = np.array([array.size for array in arrays], dtype=np.int64)
        values = np.concatenate(arrays) if arrays else np.empty(0)
        return cls(values, np.concatenate(([0], np.cumsum(lengths))))

    @classmethod
    def of_column(cls, column: pa.ChunkedArray) -> "Ragged":
        """From a list column of a table; an absent list is an empty row."""
        lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy()
        flat = pc.list_flatten(column).to_numpy().astype(np.float64)
        return cls(flat, np.concatenate(([0], np.cumsum(lengths, dtype=np.int64))))

    def __len__(self) -> int:
        return int(self.offsets.size - 1)

    @property
    def lengths(self) -> IntArray:
        """[E] values in each row."""
        return np.diff(self.offsets)

    def width(self) -> int:
        """Length of the longest row."""
        return int(self.lengths.max(initial=0))

    def part(self, where: slice) -> "Ragged":
        """The rows of a range of examples."""
        start, stop, _ = where.indices(len(self))
        offsets = self.offsets[start : stop + 1]
        return Ragged(self.values[offsets[0] : offsets[-1]], offsets - offsets[0])

    def sum(self) -> FloatArray:
        """[E]; like the statistics below, only for rows that hold a value."""
        return np.asarray(np.add.reduceat(self.values, self.offsets[:-1]))

    def mean(self) -> FloatArray:
        """[E]"""
        return self.sum() / self.lengths

    def min(self) -> FloatArray:
        """[E]"""
        return np.asarray(np.minimum.reduceat(self.values, self.offsets[:-1]))

    def max(self) -> FloatArray:
        """[E]"""
        return np.asarray(np.maximum.reduceat(self.values, self.offsets[:-1]))

    def first(self) -> FloatArray:
        """[E]"""
        return self.values[self.offsets[:-1]]

    def quantiles(self, shares: Sequence[float]) -> FloatArray:
        """[E, len(shares)] by numpy's linear rule: 0 is the minimum, 1 the maximum.

        Between -inf and any other value lies -inf.
        """
        owner = np.repeat(np.arange(len(self)), self.lengths)
        ordered = self.values[np.lexsort((self.values, owner))]
        index = np.multiply.outer(self.lengths - 1, np.asarray(shares, dtype=np.float64))
        below = np.floor(index).astype(np.int64)
        above = np.minimum(below + 1, (self.lengths - 1)[:, None])
        start = self.offsets[:-1, None]
        low, high = ordered[start + below], ordered[start + above]
        endless = np.isneginf(low)
        low, high = np.where(endless, 0.0, low), np.where(endless, 0.0, high)
        return np.where(endless, -np.inf, low + (index - below) * (high - low))

    def padded(self, width: int) -> FloatArray:
        """[E, width] rows cut or filled with zeros to one length."""
        table = np.zeros((len(self), width))
        owner = np.repeat(np.arange(len(self)), self.lengths)
        index = np.arange(self.values.size) - np.repeat(self.offsets[:-1], self.lengths)
        fits = index < width
        table[owner[fits], index[fits]] = self.values[fits]
        return table
