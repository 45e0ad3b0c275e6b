"""The bytes of a store: file names, spec, layouts, codecs, row encodings, checks of content."""

from caskd.store.format import array_checks, layout, untrusted_json
from caskd.store.format.codecs import Array
from caskd.store.format.example_index import ExampleIndex
from caskd.store.format.layout import STATUSES
from caskd.store.format.names import (
    COMMITS,
    DATA,
    DIGEST_LIST,
    ENVIRONMENT,
    README,
    SEAL,
    STAGING,
    STORE_JSON,
    canonical_json,
)
from caskd.store.format.row_encodings import DEFAULT_ENCODING, ROW_ENCODINGS, written_encodings
from caskd.store.format.rows import (
    FIELD_DTYPES,
    HEAD_SAMPLED,
    ROW_KINDS,
    SAMPLED,
    TOPK,
    RowArray,
    RowEncoding,
    RowKind,
)
from caskd.store.format.shard_file import ShardFile, encode_shards, encode_whole
from caskd.store.format.spec import (
    SPECIAL_TOKEN_FIELDS,
    StoreSpec,
    check_identity,
    check_imported,
    identity_differences,
)
from caskd.store.format.versions import needed_version, unknown_fields, unusual_capture

__all__ = [
    "COMMITS",
    "DATA",
    "DEFAULT_ENCODING",
    "DIGEST_LIST",
    "ENVIRONMENT",
    "FIELD_DTYPES",
    "HEAD_SAMPLED",
    "README",
    "ROW_ENCODINGS",
    "ROW_KINDS",
    "SAMPLED",
    "SEAL",
    "SPECIAL_TOKEN_FIELDS",
    "STAGING",
    "STATUSES",
    "STORE_JSON",
    "TOPK",
    "Array",
    "ExampleIndex",
    "RowArray",
    "RowEncoding",
    "RowKind",
    "ShardFile",
    "StoreSpec",
    "array_checks",
    "canonical_json",
    "check_identity",
    "check_imported",
    "encode_shards",
    "encode_whole",
    "identity_differences",
    "layout",
    "needed_version",
    "unknown_fields",
    "untrusted_json",
    "unusual_capture",
    "written_encodings",
]
