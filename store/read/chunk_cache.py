"""A least-recently-used cache of the decoded chunks of one field."""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from caskd.store.format import Array


class ChunkCache:
    """A fixed number of chunks in one block of memory, from which one call gathers many rows.

    Args:
        slots: number of chunks in the cache.
        shape: of a chunk.
        dtype: of the values.
        decode: writes a chunk, by number, into an array of that shape. Its exceptions pass through,
            and the chunk is not cached.
    """

    def __init__(
        self, slots: int, shape: tuple[int, ...], dtype: str, decode: Callable[[int, Array], None]
    ) -> None:
        self.slots, self.chunk, self._decode = slots, shape[0], decode
        # The system allocates the memory only when it is first written.
        self._values = np.empty((slots, *shape), dtype)
        self._flat = self._values.reshape(-1, *shape[1:])
        self._slot_of: OrderedDict[int, int] = OrderedDict()
        self._free = list(range(slots))[::-1]

    def get(self, chunk: int) -> Array:
        """The values of a chunk; later calls may overwrite them."""
        values: Array = self._values[self._slot(chunk)]
        return values

    def take(self, pieces: "Pieces", out: Array) -> None:
        """Copy pieces of at most `slots` different chunks into `out`, one after another."""
        if len(pieces.which) == 1:
            first = self._slot(pieces.chunks[0]) * self.chunk + int(pieces.starts[0])
            out[:] = self._flat[first : first + len(out)]
            return
        slots = np.array([self._slot(chunk) for chunk in pieces.chunks])
        firsts = slots[pieces.which] * self.chunk + pieces.starts
        before = np.cumsum(pieces.counts) - pieces.counts
        indices = np.repeat(firsts - before, pieces.counts)
        indices += np.arange(len(out))
        self._flat.take(indices, axis=0, out=out, mode="wrap")

    def _slot(self, chunk: int) -> int:
        slot = self._slot_of.pop(chunk, None)
        if slot is None:
            slot = self._free.pop() if self._free else self._slot_of.popitem(last=False)[1]
            try:
                self._decode(chunk, self._values[slot])
            except BaseException:
                self._free.append(slot)
                raise
        self._slot_of[chunk] = slot
        return slot


@dataclass(frozen=True)
class Pieces:
    """Parts of chunks, in the sequence in which they are concatenated."""

    chunks: list[int]  # numbers of the different chunks
    which: npt.NDArray[np.int64]  # index into `chunks`, per piece
    starts: npt.NDArray[np.int64]  # first entry within the chunk, per piece
    counts: npt.NDArray[np.int64]  # number of entries, per piece

    def groups(self, limit: int) -> Iterator["Pieces"]:
        """Split the pieces into groups that touch at most `limit` different chunks each."""
        if len(self.chunks) <= limit:
            if self.chunks:
                yield self
            return
        borders, seen = [0], set[int]()
        for piece, index in enumerate(self.which.tolist()):
            if index not in seen and len(seen) == limit:
                borders.append(piece)
                seen = set()
            seen.add(index)
        for first, last in pairwise([*borders, len(self.which)]):
            used, which = np.unique(self.which[first:last], return_inverse=True)
            chunks = [self.chunks[index] for index in used]
            yield Pieces(chunks, which, self.starts[first:last], self.counts[first:last])


def split_at_chunks(starts: Array, counts: Array, chunk: int) -> Pieces:
    """Split runs of an axis at chunk borders; adjacent runs are joined first.

    Args:
        starts: first entry of each run.
        counts: entries of each run, 0 allowed.
        chunk: entries of a chunk.
    """
    if len(starts) == 1 and counts[0] > 0:
        return _split_one(int(starts[0]), int(counts[0]), chunk)
    starts, counts = starts[counts > 0], counts[counts > 0].astype(np.int64)
    ends = starts + counts
    joined = np.flatnonzero(starts[1:] == ends[:-1])
    starts, ends = np.delete(starts, joined + 1), np.delete(ends, joined)
    first, last = starts // chunk, (ends - 1) // chunk
    num_pieces = last - first + 1
    before = np.cumsum(num_pieces) - num_pieces
    chunks = np.repeat(first - before, num_pieces) + np.arange(num_pieces.sum())
    inside = np.maximum(np.repeat(starts, num_pieces) - chunks * chunk, 0)
    stops = np.minimum(np.repeat(ends, num_pieces) - chunks * chunk, chunk)
    different, which = np.unique(chunks, return_inverse=True)
    return Pieces(different.tolist(), which, inside, stops - inside)


def _split_one(start: int, count: int, chunk: int) -> Pieces:
    """`split_at_chunks` of one run, which is what a read of one example needs."""
    first, last = start // chunk, (start + count - 1) // chunk
    borders = [start, *range((first + 1) * chunk, (last + 1) * chunk, chunk), start + count]
    begins = np.array(borders[:-1])
    which = np.arange(last - first + 1)
    chunks = list(range(first, last + 1))
    return Pieces(chunks, which, begins - (first + which) * chunk, np.diff(borders))
