"""One Zarr shard file: chunks, then an index of (offset, size), then the index's crc32c.

The format is Zarr's `sharding_indexed`; a test compares this reader with zarr-python. Reading a
chunk here costs one system call, and nothing is decoded unchecked.
"""

import math
import os
import struct
from pathlib import Path
from stat import S_ISREG

import google_crc32c
import numpy as np

from caskd.store.errors import CorruptError
from caskd.store.format.codecs import Array, decode_chunk, encode_chunk
from caskd.store.format.layout import ArrayLayout, as_stored
from caskd.store.io import files

_ABSENT = np.uint64(2**64 - 1)
_SLACK_BYTES = 1 << 16


def encode_shards(array: ArrayLayout, values: Array) -> list[bytes]:
    """The shard files of `values`, which start at a shard boundary; the last shard is padded."""
    as_stored(array, values)
    starts = range(0, len(values), array.shard)
    return [_encode_shard(array, values[start : start + array.shard]) for start in starts]


def _encode_shard(array: ArrayLayout, values: Array) -> bytes:
    index = np.full((math.ceil(array.shard / array.chunk), 2), _ABSENT, "<u8")
    parts, offset = [], 0
    for number, start in enumerate(range(0, len(values), array.chunk)):
        chunk = values[start : start + array.chunk]
        if len(chunk) < array.chunk:
            padding = np.zeros(array.shape(array.chunk - len(chunk)), array.dtype)
            chunk = np.concatenate([chunk, padding])
        parts.append(encode_chunk(array.chain, chunk))
        index[number] = offset, len(parts[-1])
        offset += len(parts[-1])
    footer = index.tobytes()
    return b"".join([*parts, footer, struct.pack("<I", google_crc32c.value(footer))])


def encode_whole(array: ArrayLayout, values: Array) -> dict[str, bytes]:
    """All files of an array, zarr.json included, name -> bytes."""
    contents = {array.metadata_key: array.metadata_bytes(len(values))}
    contents.update({array.key(i): data for i, data in enumerate(encode_shards(array, values))})
    return contents


class ShardFile:
    """An open shard file.

    Raises:
        CorruptError: not a regular file, or its index is damaged.
    """

    def __init__(self, path: Path, array: ArrayLayout) -> None:
        self.array = array
        self._fd = -1
        # Do not follow a link or wait for a pipe that replaces the file.
        self._fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            status = os.fstat(self._fd)
            if not S_ISREG(status.st_mode):
                raise CorruptError("it is not a regular file")
            self._index = self._read_index(status.st_size)
        except BaseException:
            self.close()
            raise

    def _read_index(self, size: int) -> list[tuple[int, int]]:
        num_chunks = math.ceil(self.array.shard / self.array.chunk)
        length = 16 * num_chunks + 4
        footer = self._read(size - length, length) if size >= length else b""
        if len(footer) != length:
            raise CorruptError("it is too short for its index")
        if struct.unpack("<I", footer[-4:])[0] != google_crc32c.value(footer[:-4]):
            raise CorruptError("the crc32c of its index differs")
        entries = np.frombuffer(footer[:-4], "<u8").reshape(-1, 2).tolist()
        limit = (
            int(np.prod(self.array.shape(self.array.chunk))) * np.dtype(self.array.dtype).itemsize
        )
        for offset, count in entries:
            absent = offset == count == int(_ABSENT)
            if not absent and (offset + count > size - length or count > 2 * limit + _SLACK_BYTES):
                raise CorruptError("its index points outside the file")
        return [(offset, count) for offset, count in entries]

    def _read(self, offset: int, count: int) -> bytes:
        return files.read_at(self._fd, offset, count)

    def chunk(self, number: int) -> Array:
        """Decode chunk `number` of this shard, [chunk] or [chunk, cells].

        Raises:
            CorruptError: it is absent, truncated, or its bytes are not those that were written.
        """
        offset, count = self._index[number]
        if offset == int(_ABSENT):
            raise CorruptError(f"chunk {number} is absent")
        data = self._read(offset, count)
        if len(data) != count:
            raise CorruptError(f"chunk {number} is truncated")
        shape = self.array.shape(self.array.chunk)
        try:
            return decode_chunk(self.array.chain, data, self.array.dtype, shape)
        except CorruptError as error:
            raise CorruptError(f"chunk {number}: {error}") from None

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        self.close()
