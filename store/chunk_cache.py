"""Decoded chunks, least recently used out first."""

from collections import OrderedDict
from typing import Any

import numpy.typing as npt

Array = npt.NDArray[Any]
Key = tuple[str, int]


class ChunkCache:
    """Keeps decoded chunks of at most `limit` bytes together (and always the last one)."""

    def __init__(self, limit: int) -> None:
        self.limit, self.num_bytes = limit, 0
        self._chunks: OrderedDict[Key, Array] = OrderedDict()

    def get(self, key: Key) -> Array | None:
        """The chunk, if it is here."""
        values = self._chunks.get(key)
        if values is not None:
            self._chunks.move_to_end(key)
        return values

    def put(self, key: Key, values: Array) -> None:
        """Keep a chunk; others go when it gets too much."""
        self._chunks[key] = values
        self.num_bytes += values.nbytes
        while self.num_bytes > self.limit and len(self._chunks) > 1:
            self.num_bytes -= self._chunks.popitem(last=False)[1].nbytes
