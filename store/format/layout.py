"""Every array of a store: name, dtype, shape, chunking, codec chain, and its zarr.json.

Legend: R rows of a shard, k cells per row, E examples, T tokens of the store, V vocabulary.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from caskd.store.errors import UsageError
from caskd.store.format.codecs import LITTLE_ENDIAN, Chain, chain_metadata
from caskd.store.format.spec import StoreSpec, canonical_json

Array = npt.NDArray[Any]
Encoding = Literal["compact", "exact"]

CELL_CHUNK = 512
COLUMN_CHUNK = 4096
TOKEN_CHUNK = 1 << 14
TOKEN_SHARD = 1 << 20

STATUSES = (
    "ok", "truncated", "too_long", "empty", "out_of_vocabulary", "non_finite", "duplicate",
)  # fmt: skip
GROUP_METADATA = canonical_json({"attributes": {}, "node_type": "group", "zarr_format": 3})


@dataclass(frozen=True)
class ArrayLayout:
    """One Zarr array: along its first axis, `shard` entries make a file, `chunk` a checked unit."""

    name: str
    dtype: str
    chunk: int
    shard: int
    chain: Chain = "shuffled"
    cells: int | None = None  # second axis, always whole in a chunk

    def shape(self, length: int) -> tuple[int, ...]:
        """Shape with `length` entries on the first axis."""
        return (length,) if self.cells is None else (length, self.cells)

    def key(self, shard: int) -> str:
        """File of a shard, relative to the store."""
        return f"data.zarr/{self.name}/c/{shard}" + ("" if self.cells is None else "/0")

    @property
    def metadata_key(self) -> str:
        """File of the array's zarr.json, relative to the store."""
        return f"data.zarr/{self.name}/zarr.json"

    def metadata(self, length: int) -> dict[str, Any]:
        """The array's zarr.json; a reader accepts nothing else."""
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
    """Rows of an inner chunk: small enough for random reads, a divisor of the shard.

    Raises:
        UsageError: names `--shard-rows` and the nearest value that works.
    """
    if shard_rows < 1:
        raise UsageError(f"--shard-rows is {shard_rows}; expected at least 1.")
    if shard_rows <= CELL_CHUNK:
        return shard_rows
    if shard_rows % CELL_CHUNK:
        nearest = math.ceil(shard_rows / CELL_CHUNK) * CELL_CHUNK
        raise UsageError(
            f"--shard-rows is {shard_rows}; expected a multiple of {CELL_CHUNK} "
            f"(or at most {CELL_CHUNK}). Try --shard-rows {nearest}."
        )
    return CELL_CHUNK


def layouts_of(spec: StoreSpec) -> tuple[ArrayLayout, ...]:
    """The row arrays of a store, as they are on disk."""
    return row_layouts(
        spec.encoding, spec.num_cells, spec.chunk_rows, spec.shard_rows, kind=spec.kind
    )


def row_layouts(
    encoding: str, num_cells: int, chunk_rows: int, shard_rows: int, *, kind: str = "topk"
) -> tuple[ArrayLayout, ...]:
    """The row arrays of a store, as they are on disk."""

    def cells(name: str, dtype: str, chain: Chain) -> ArrayLayout:
        return ArrayLayout(name, dtype, chunk_rows, shard_rows, chain, num_cells)

    def column(name: str, dtype: str, chain: Chain) -> ArrayLayout:
        chunk = math.gcd(COLUMN_CHUNK, shard_rows) if shard_rows > COLUMN_CHUNK else shard_rows
        return ArrayLayout(name, dtype, chunk, shard_rows, chain)

    distributions = {
        ("topk", "compact"): (
            cells("topk_id_codes", "uint32", "packed"),
            column("topk_id_order", "uint8", "shuffled"),
            cells("topk_logit_steps", "uint16", "transposed"),
        ),
        ("topk", "exact"): (
            cells("topk_ids", "uint32", "packed"),
            cells("topk_logits", "float32", "transposed"),
        ),
        ("sampled", "compact"): (
            cells("sampled_place_steps", "uint32", "ragged"),
            column("sampled_id_order", "uint8", "shuffled"),
            cells("sampled_place_counts", "uint16", "ragged"),
        ),
        ("sampled", "exact"): (
            cells("sampled_ids", "uint32", "packed"),
            cells("sampled_counts", "uint16", "transposed"),
        ),
    }
    columns = {
        "num_kept": column("num_kept", "uint16", "shuffled"),
        "logsumexp": column("logsumexp", "float32", "packed"),
        "label_logit": column("label_logit", "float32", "packed"),
        "tail_mass": column("tail_mass", "float32", "packed"),
        "argmax": column("argmax", "uint32", "packed"),
        "label_rank": column("label_rank", "uint32", "packed"),
    }
    kept = (array for name, array in columns.items() if name in FIELDS_OF_KIND[kind])
    return (*distributions[kind, encoding], *kept)


ROW_FIELDS = (
    "topk_ids", "topk_logits", "num_kept", "logsumexp", "label_logit", "tail_mass", "argmax",
    "label_rank",
)  # fmt: skip
SAMPLED_FIELDS = (
    "sampled_ids", "sampled_counts", "num_kept", "logsumexp", "label_logit", "argmax",
    "label_rank",
)  # fmt: skip
FIELDS_OF_KIND = {"topk": ROW_FIELDS, "sampled": SAMPLED_FIELDS}
FIELD_DTYPES = {
    "topk_ids": "uint32", "topk_logits": "float32", "sampled_ids": "uint32",
    "sampled_counts": "uint16", "num_kept": "uint16", "logsumexp": "float32",
    "label_logit": "float32", "tail_mass": "float32", "argmax": "uint32", "label_rank": "uint32",
}  # fmt: skip
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
    """Orders of ids in `id_order`: as many as save a store of so many rows more than they take."""
    return next((number for least, number in _ORDERS_FROM_ROWS if num_rows >= least), 1)


def row_metadata(layouts: Iterable[ArrayLayout], length: int) -> dict[str, bytes]:
    """The zarr.json of arrays whose shards come later: file name -> bytes."""
    return {array.metadata_key: array.metadata_bytes(length) for array in layouts}


def as_stored(array: ArrayLayout, values: Array) -> Array:
    """`values` if they have the array's dtype and cells; anything else is a bug of ours."""
    assert values.dtype == np.dtype(array.dtype), (array.name, values.dtype)
    assert values.shape[1:] == array.shape(0)[1:], (array.name, values.shape)
    return values
