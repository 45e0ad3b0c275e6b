"""Formats in which other programs keep a teacher's rows: their codecs and writers."""

from caskd.store.exchange.distillkit import (
    CONFIG_FILE,
    Compression,
    decode_ids,
    decode_values,
    encode_ids,
    encode_values,
    parse_compression,
)

__all__ = [
    "CONFIG_FILE",
    "Compression",
    "decode_ids",
    "decode_values",
    "encode_ids",
    "encode_values",
    "parse_compression",
]
