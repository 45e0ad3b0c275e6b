"""What the bytes of a store are: spec, layouts, codecs, encodings, checks of untrusted JSON."""

from caskd.store.format import array_checks, layout, untrusted_json
from caskd.store.format.draw_encoding import decode_draws, kept_cells
from caskd.store.format.example_index import ExampleIndex
from caskd.store.format.id_orders import decode_ids, fit_orders
from caskd.store.format.layout import (
    FIELD_DTYPES,
    ROW_FIELDS,
    SAMPLED_FIELDS,
    STATUSES,
    Array,
    chunk_rows_for,
)
from caskd.store.format.shard_file import ShardFile, encode_shards, encode_whole
from caskd.store.format.spec import StoreSpec, canonical_json, check_identity, identity_differences
from caskd.store.format.topk_encoding import decode_logits, encode_rows

__all__ = [
    "FIELD_DTYPES",
    "ROW_FIELDS",
    "SAMPLED_FIELDS",
    "STATUSES",
    "Array",
    "ExampleIndex",
    "ShardFile",
    "StoreSpec",
    "array_checks",
    "canonical_json",
    "check_identity",
    "chunk_rows_for",
    "decode_draws",
    "decode_ids",
    "decode_logits",
    "encode_rows",
    "encode_shards",
    "encode_whole",
    "fit_orders",
    "identity_differences",
    "kept_cells",
    "layout",
    "untrusted_json",
]
