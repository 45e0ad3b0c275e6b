"""Every array of a store: name, dtype, shape and chunking. zarr is used through this file only.

Legend: R rows of a shard, k cells per row, E examples, T tokens of the store, V vocabulary.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from caskd.store.errors import UsageError

Array = npt.NDArray[Any]

MAX_CHUNK_ROWS = 512
TOKEN_SHARD = 1 << 20
TOKEN_CHUNK = 1 << 14


@dataclass(frozen=True)
class ArrayLayout:
    """One Zarr array: along its first axis, `shard` entries make a file, `chunk` a checked unit."""

    name: str
    dtype: str
    chunk: int
    shard: int
    cells: int | None = None  # second axis, always whole in a chunk

    def shape(self, length: int) -> tuple[int, ...]:
        """Shape with `length` entries on the first axis."""
        return (length,) if self.cells is None else (length, self.cells)

    def key(self, shard: int) -> str:
        """File of a shard, relative to the store."""
        return f"data.zarr/{self.name}/c/{shard}" + ("" if self.cells is None else "/0")


def chunk_rows_for(shard_rows: int) -> int:
    """Rows of an inner chunk: small enough for random reads, a divisor of the shard.

    Raises:
        UsageError: names `--shard-rows` and the nearest value that works.
    """
    if shard_rows < 1:
        raise UsageError(f"--shard-rows is {shard_rows}; expected at least 1.")
    if shard_rows <= MAX_CHUNK_ROWS:
        return shard_rows
    if shard_rows % MAX_CHUNK_ROWS:
        nearest = math.ceil(shard_rows / MAX_CHUNK_ROWS) * MAX_CHUNK_ROWS
        raise UsageError(
            f"--shard-rows is {shard_rows}; expected a multiple of {MAX_CHUNK_ROWS} "
            f"(or at most {MAX_CHUNK_ROWS}). Try --shard-rows {nearest}."
        )
    return MAX_CHUNK_ROWS


def row_layouts(top_k: int, chunk_rows: int, shard_rows: int) -> tuple[ArrayLayout, ...]:
    """The row arrays of a `topk` store."""
    columns: dict[str, tuple[str, int | None]] = {
        "topk_ids": ("uint32", top_k),
        "topk_logits": ("float32", top_k),
        "num_kept": ("uint16", None),
        "logsumexp": ("float32", None),
        "label_logit": ("float32", None),
        "tail_mass": ("float32", None),
        "argmax": ("uint32", None),
        "label_rank": ("uint32", None),
    }
    # A column of single numbers is small: one chunk a shard compresses best and is read in one go.
    return tuple(
        ArrayLayout(name, dtype, chunk_rows if cells else shard_rows, shard_rows, cells)
        for name, (dtype, cells) in columns.items()
    )


TOKEN_LAYOUTS = (
    ArrayLayout("token_ids", "uint32", TOKEN_CHUNK, TOKEN_SHARD),
    ArrayLayout("is_response", "uint8", TOKEN_CHUNK, TOKEN_SHARD),
)
EXAMPLE_LAYOUTS = tuple(
    ArrayLayout(name, dtype, TOKEN_CHUNK, TOKEN_SHARD)
    for name, dtype in (
        ("token_start", "int64"),
        ("token_count", "int32"),
        ("row_start", "int64"),
        ("row_count", "int32"),
        ("status", "uint8"),
        ("source_index", "int64"),
        ("task", "uint16"),
    )
)
VOCAB_LAYOUTS = (
    ArrayLayout("vocab_bytes", "uint8", TOKEN_SHARD, TOKEN_SHARD),
    ArrayLayout("vocab_offsets", "int64", TOKEN_SHARD, TOKEN_SHARD),
)

STATUSES = ("ok", "truncated", "too_long", "empty", "out_of_vocabulary", "non_finite")


def encode(layout: ArrayLayout, length: int, values: Array) -> tuple[bytes, list[bytes]]:
    """Encode entries with zarr itself.

    Args:
        layout: the array.
        length: entries of the whole array on its first axis, for the metadata.
        values: entries, starting at a shard boundary.

    Returns:
        The bytes of the array's zarr.json, and the bytes of one file per shard of `values`.
    """
    import zarr
    from zarr.codecs import BloscCodec, Crc32cCodec
    from zarr.storage import MemoryStore

    def create(store: MemoryStore, size: int) -> "zarr.Array[Any]":
        return zarr.create_array(
            store,
            name=layout.name,
            shape=layout.shape(size),
            dtype=layout.dtype,
            chunks=layout.shape(layout.chunk),
            shards=layout.shape(layout.shard),
            compressors=[
                BloscCodec(
                    typesize=np.dtype(layout.dtype).itemsize,
                    cname="zstd",
                    clevel=3,
                    shuffle="bitshuffle",
                ),
                Crc32cCodec(),
            ],
            fill_value=0,
            # An all-zero chunk must exist: a missing one is always an error.
            config={"write_empty_chunks": True},
        )

    described: dict[str, Any] = {}
    encoded: dict[str, Any] = {}
    create(MemoryStore(described), length)
    create(MemoryStore(encoded), len(values))[...] = values
    shards = range(math.ceil(len(values) / layout.shard))
    keys = [layout.key(shard).removeprefix("data.zarr/") for shard in shards]
    metadata: bytes = described[f"{layout.name}/zarr.json"].to_bytes()
    return metadata, [encoded[key].to_bytes() for key in keys]


GROUP_METADATA = b'{\n "attributes": {},\n "node_type": "group",\n "zarr_format": 3\n}\n'


def encode_whole(layout: ArrayLayout, values: Array) -> dict[str, bytes]:
    """Encode a whole array: file name relative to the store -> bytes."""
    metadata, shards = encode(layout, len(values), values)
    contents = {f"data.zarr/{layout.name}/zarr.json": metadata}
    contents.update({layout.key(i): data for i, data in enumerate(shards)})
    return contents


def array_metadata(layouts: Iterable[ArrayLayout], length: int) -> dict[str, bytes]:
    """The zarr.json of arrays that are not written yet: file name -> bytes."""
    return {
        f"data.zarr/{layout.name}/zarr.json": encode(
            layout, length, np.zeros(layout.shape(0), layout.dtype)
        )[0]
        for layout in layouts
    }
