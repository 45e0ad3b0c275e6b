"""The layout of an array on disk: dtype, chunks, shards, codec chain and zarr.json.

The fixed arrays of a store (tokens, examples, vocabulary, orders of ids) are listed here. The row
arrays depend on the store's encoding; see rows.py.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from caskd.store.errors import UsageError
from caskd.store.format.codecs import LITTLE_ENDIAN, Array, Chain, chain_metadata
from caskd.store.format.names import DATA, canonical_json

CELL_CHUNK = 512  # rows of a chunk of cells
COLUMN_CHUNK = 4096  # rows of a chunk of a column
TOKEN_CHUNK = 1 << 14
TOKEN_SHARD = 1 << 20

STATUSES = (
    "ok",
    "truncated",
    "too_long",
    "empty",
    "out_of_vocabulary",
    "non_finite",
    "duplicate",
    "chat_refused",
    "unfinished",
)
"""Names of the values of the `status` array."""
NUM_STATUSES = {1: 7, 2: 9}
"""Number of them that a format version knows."""
GROUP_METADATA = canonical_json({"attributes": {}, "node_type": "group", "zarr_format": 3})


@dataclass(frozen=True)
class ArrayLayout:
    """One Zarr array.

    Attributes:
        name: of the array.
        dtype: of its values.
        chunk: entries, along the first axis, of a chunk. Each chunk has its own checksum.
        shard: entries, along the first axis, of a file.
        chain: codec chain of a chunk.
        cells: length of the second axis, which no chunk splits; None for a 1-d array.
    """

    name: str
    dtype: str
    chunk: int
    shard: int
    chain: Chain = "shuffled"
    cells: int | None = None

    def shape(self, length: int) -> tuple[int, ...]:
        """Shape with `length` entries on the first axis."""
        return (length,) if self.cells is None else (length, self.cells)

    def key(self, shard: int) -> str:
        """File of a shard, relative to the store."""
        return f"{DATA}/{self.name}/c/{shard}" + ("" if self.cells is None else "/0")

    @property
    def metadata_key(self) -> str:
        """File of the array's zarr.json, relative to the store."""
        return f"{DATA}/{self.name}/zarr.json"

    def metadata(self, length: int) -> dict[str, Any]:
        """The array's zarr.json; readers refuse any other."""
        sharding = {
            "chunk_shape": list(self.shape(self.chunk)),
            "codecs": chain_metadata(self.chain, self.dtype),
            "index_codecs": [LITTLE_ENDIAN, {"name": "crc32c"}],
            "index_location": "end",
        }
        grid = {"chunk_shape": list(self.shape(self.shard))}
        return {
            "zarr_format": 3,
            "node_type": "array",
            "shape": list(self.shape(length)),
            "data_type": self.dtype,
            "chunk_grid": {"name": "regular", "configuration": grid},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": 0,
            "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
            "attributes": {},
            "storage_transformers": [],
        }

    def metadata_bytes(self, length: int) -> bytes:
        """The bytes of the array's zarr.json."""
        return canonical_json(self.metadata(length))


def chunk_rows_for(shard_rows: int) -> int:
    """Rows of a chunk of cells: small enough for random reads, and a divisor of `shard_rows`.

    Raises:
        UsageError: names `--shard-rows` and the nearest value that works.
    """
    if shard_rows < 1:
        raise UsageError(f"--shard-rows {shard_rows}: expected at least 1; pass a larger value")
    if shard_rows <= CELL_CHUNK:
        return shard_rows
    if shard_rows % CELL_CHUNK:
        nearest = math.ceil(shard_rows / CELL_CHUNK) * CELL_CHUNK
        raise UsageError(
            f"--shard-rows {shard_rows}: expected a multiple of {CELL_CHUNK}, or at most "
            f"{CELL_CHUNK}; pass --shard-rows {nearest}"
        )
    return CELL_CHUNK


TOKEN_LAYOUTS = (
    ArrayLayout("token_ids", "uint32", TOKEN_CHUNK, TOKEN_SHARD, "packed"),
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
    ArrayLayout("vocab_bytes", "uint8", TOKEN_SHARD, TOKEN_SHARD, "plain"),
    ArrayLayout("vocab_offsets", "int64", TOKEN_CHUNK, TOKEN_SHARD, "packed"),
)
ID_ORDER = ArrayLayout("id_order", "uint32", TOKEN_CHUNK, TOKEN_SHARD, "packed")
_ORDERS_FROM_ROWS = ((1 << 19, 16), (1 << 16, 8), (1 << 15, 4))


def num_orders(num_rows: int) -> int:
    """Number of orders in `id_order`, chosen so that they save more bytes than they take."""
    return next((number for least, number in _ORDERS_FROM_ROWS if num_rows >= least), 1)


def row_metadata(layouts: Iterable[ArrayLayout], num_shards: int) -> dict[str, bytes]:
    """The zarr.json files of arrays whose shards are committed later, name -> bytes."""
    return {a.metadata_key: a.metadata_bytes(num_shards * a.shard) for a in layouts}


def as_stored(array: ArrayLayout, values: Array) -> Array:
    """`values`, asserted to have the array's dtype and cells."""
    assert values.dtype == np.dtype(array.dtype), (array.name, values.dtype)
    assert values.shape[1:] == array.shape(0)[1:], (array.name, values.shape)
    return values
