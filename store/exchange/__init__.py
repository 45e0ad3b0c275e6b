"""Formats in which other programs keep a teacher's rows: codecs and writers."""

from caskd.store.exchange.distillkit import (
    CONFIG_FILE,
    Compression,
    decode_ids,
    decode_values,
    encode_ids,
    parse_compression,
)
from caskd.store.exchange.export import (
    IGNORED,
    NO_PROBABILITY,
    ExportFormat,
    ExportReport,
    export_store,
)

__all__ = [
    "CONFIG_FILE",
    "IGNORED",
    "NO_PROBABILITY",
    "Compression",
    "ExportFormat",
    "ExportReport",
    "decode_ids",
    "decode_values",
    "encode_ids",
    "export_store",
    "parse_compression",
]
