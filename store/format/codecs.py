"""Encode and decode one chunk with one of seven codec chains, each ending in crc32c.

`plain`: blosc (zstd), for text. `shuffled`: blosc (zstd, bitshuffle). `transposed`: `shuffled` with
the two axes swapped, so that cells of one rank lie together. `packed`: pcodec, for numbers without
a byte structure. `ragged`: `packed` with the zeros at a chunk's end in a separate page, where they
cost next to nothing. `ranks`: `ragged` with the two axes swapped. `octaves`: `ranks` with a page
for each octave of ranks (0, 1, 2-3, 4-7, ...) and for the zeros at its end.

Sizes are checked before anything is decoded. A header that states a wrong size is damage or an
attack; no memory is allocated for it.
"""

import struct
from typing import Any, Literal

import google_crc32c
import numpy as np
import numpy.typing as npt
from numcodecs import blosc

from caskd.store.cells import octaves
from caskd.store.errors import CorruptError

Array = npt.NDArray[Any]
Chain = Literal["plain", "shuffled", "transposed", "packed", "ragged", "ranks", "octaves"]
_PCODEC: tuple[Chain, ...] = ("packed", "ragged", "ranks", "octaves")
_SWAPPED: tuple[Chain, ...] = ("transposed", "ranks", "octaves")

# With threads, blosc writes the blocks of a frame in the order in which they finish, so equal input
# would not give equal bytes. A chunk is far too small to gain from threads.
blosc.use_threads = False

_CRC = struct.Struct("<I")
_BLOSC_HEADER = struct.Struct("<BBBBIII")
BLOSC_LEVEL = 4
PCODEC_LEVEL = 9
_CRC_CODEC = {"name": "crc32c"}
LITTLE_ENDIAN = {"name": "bytes", "configuration": {"endian": "little"}}


def chain_metadata(chain: Chain, dtype: str) -> list[dict[str, Any]]:
    """The Zarr v3 codecs of the chain, for zarr.json."""
    head: list[dict[str, Any]] = []
    if chain in _SWAPPED:
        head = [{"name": "transpose", "configuration": {"order": [1, 0]}}]
    if chain in _PCODEC:
        packed = {"name": "numcodecs.pcodec", "configuration": {"level": PCODEC_LEVEL}}
        return [*head, packed, _CRC_CODEC]
    blosc_codec = {
        "name": "blosc",
        "configuration": {
            "typesize": np.dtype(dtype).itemsize,
            "cname": "zstd",
            "clevel": BLOSC_LEVEL,
            "shuffle": "noshuffle" if chain == "plain" else "bitshuffle",
            "blocksize": 0,
        },
    }
    # zarr writes no endianness for one-byte types.
    plain = {"name": "bytes"} if np.dtype(dtype).itemsize == 1 else LITTLE_ENDIAN
    return [*head, plain, blosc_codec, _CRC_CODEC]


def encode_chunk(chain: Chain, values: Array) -> bytes:
    """Encode a whole chunk."""
    if chain in _SWAPPED:
        values = values.T
    if chain in _PCODEC:
        payload = _pack(values, chain)
    else:
        plain = np.ascontiguousarray(values)
        shuffle = blosc.NOSHUFFLE if chain == "plain" else blosc.BITSHUFFLE
        payload = blosc.compress(plain, b"zstd", BLOSC_LEVEL, shuffle, 0)
    return payload + _CRC.pack(google_crc32c.value(payload))


def decode_chunk(chain: Chain, data: bytes, dtype: str, shape: tuple[int, ...]) -> Array:
    """Decode a chunk into a new array.

    Raises:
        CorruptError: the crc32c differs, or the payload states or holds a wrong size.
    """
    payload = data[:-4]
    if len(data) < 4 or _CRC.unpack(data[-4:])[0] != google_crc32c.value(payload):
        raise CorruptError("its crc32c differs")
    stored = shape[::-1] if chain in _SWAPPED else shape
    values: Array = np.empty(stored, dtype)
    if chain in _PCODEC:
        _unpack(payload, values)
    else:
        if len(payload) < _BLOSC_HEADER.size:
            raise CorruptError("its payload is too short for a header")
        *_, num_bytes, _block, packed = _BLOSC_HEADER.unpack_from(payload)
        if num_bytes != values.nbytes or packed != len(payload):
            raise CorruptError(f"its header states {num_bytes:,} bytes; expected {values.nbytes:,}")
        try:
            blosc.decompress(payload, values)
        except (RuntimeError, ValueError):
            raise CorruptError("its payload does not decompress") from None
    return values.T if chain in _SWAPPED else values


def _pack(values: Array, chain: Chain) -> bytes:
    from pcodec import ChunkConfig, DeltaSpec, ModeSpec, PagingSpec, standalone

    config = ChunkConfig(compression_level=PCODEC_LEVEL)
    if values.ndim > 1:
        # Neighbouring cells of a row are unrelated; spare pcodec the search for a relation.
        config.delta_spec, config.mode_spec = DeltaSpec.no_op(), ModeSpec.classic()
    flat = np.ascontiguousarray(values).reshape(-1)
    if chain != "packed":
        width = flat.size // len(values)
        parts = octaves(len(values)) if chain == "octaves" else [(0, len(values))]
        pages = [
            size for start, stop in parts for size in _pages(flat[start * width : stop * width])
        ]
        config.paging_spec = PagingSpec.exact_page_sizes(pages)
    packed: bytes = standalone.simple_compress(flat, config)
    return packed


def _pages(flat: Array) -> list[int]:
    """Sizes of the page up to the last number that is not 0, and of the page of zeros behind it."""
    used = np.flatnonzero(flat)
    front = int(used[-1]) + 1 if len(used) else 0
    return [size for size in (front, flat.size - front) if size]


def _unpack(payload: bytes, out: Array) -> None:
    from pcodec import standalone

    flat = out.reshape(-1)
    try:
        # The output buffer bounds the memory that a hostile payload can use.
        progress = standalone.simple_decompress_into(payload, flat)
    except (RuntimeError, ValueError, TypeError) as error:
        raise CorruptError(f"its payload does not decode ({error})") from None
    if not progress.finished or progress.n_processed != flat.size:
        raise CorruptError(f"it does not hold {flat.size:,} values")
