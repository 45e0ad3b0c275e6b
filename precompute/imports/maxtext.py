"""Reads MaxText's ArrayRecord of a teacher's top-k logits.

Legend: S positions of a record, k cells of a row.

A record is a tf.train.Example with `inputs` [S], `top_k_logits` and `top_k_indices` [S k], and
perhaps `targets` and the segments of both. Position t has the row of the token behind it.
Packed texts are taken apart by segment. There is no log-sum-exp, so that a tail is unknown.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from caskd.precompute.imports.examples import ForeignExample
from caskd.precompute.imports.source import Reading, Source, regular_files, source_error
from caskd.store.errors import CaskdError, UsageError, reason
from caskd.store.imports import require

Features = Mapping[str, npt.NDArray[Any]]
_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5
_LONGEST_VARINT = 10
_COMMON = ("inputs", "top_k_indices", "top_k_logits")


def open_maxtext(source: str, reading: Reading) -> Source:
    """The texts of a file, or of a folder's files, that end in .array_record.

    Raises:
        UsageError: there is none, or array_record is not installed.
    """
    module: Any = require(
        "array_record.python.array_record_module", extra="maxtext", needed_by="caskd import maxtext"
    )
    files = regular_files(source, ".array_record")
    if not files:
        raise source_error(source, "no .array_record file", "those that MaxText wrote")
    examples = (example for file in files for example in _file_examples(module, file))
    return Source(examples, precision="float32", has_tail=False)


def _file_examples(module: Any, file: Path) -> Iterator[ForeignExample]:
    number = 0
    try:
        reader = module.ArrayRecordReader(str(file))
        if not reader.num_records():  # of other bytes, too
            raise ValueError("the file has no records")
        for number in range(reader.num_records()):
            (data,) = reader.read([number])
            yield from record_examples(parse_example(data))
    except (GeneratorExit, KeyboardInterrupt, UsageError):
        raise
    except Exception as error:
        if not isinstance(error, CaskdError | ValueError | RuntimeError | IndexError | OSError):
            raise
        raise source_error(
            str(file), f"record {number}: {reason(error)}", "a file as MaxText writes it"
        ) from None


def record_examples(features: Features) -> Iterator[ForeignExample]:
    """The texts of a record.

    Raises:
        ValueError: a feature is missing or has another length than the others.
    """
    inputs, ids, logits = (_feature(features, name) for name in _COMMON)
    num = len(inputs)
    if not num or len(ids) != len(logits) or not len(ids) or len(ids) % num:
        raise ValueError(f"{num} inputs, {len(ids)} indices and {len(logits)} logits")
    ids, logits = ids.reshape(num, -1), logits.reshape(num, -1)
    segments = _optional(features, "inputs_segmentation", num, 1)
    chosen = _optional(features, "targets_segmentation", num, 1) != 0
    targets = features.get("targets")
    if targets is not None and len(targets) != num:
        raise ValueError(f"{len(targets)} targets for {num} inputs")
    edges = np.flatnonzero(np.diff(segments)) + 1
    for start, stop in zip([0, *edges.tolist()], [*edges.tolist(), num], strict=True):
        if segments[start] == 0:
            continue  # padding
        last: Any = [] if targets is None or not chosen[stop - 1] else targets[stop - 1 : stop]
        tokens = np.concatenate([inputs[start:stop], last]).astype(np.int64)
        if targets is not None and (targets[start : stop - 1] != tokens[1 : stop - start]).any():
            raise ValueError("targets are not the inputs one position later")
        has_row = chosen[start : start + len(tokens) - 1]
        rows = start + np.flatnonzero(has_row)
        yield ForeignExample(
            token_ids=tokens,
            is_response=np.concatenate([[0], has_row]).astype(np.uint8),
            ids=ids[rows].astype(np.int64),
            logprobs=_normalised(logits[rows]),
        )


def _feature(features: Features, name: str) -> npt.NDArray[Any]:
    if name not in features:
        raise ValueError(f"no feature {name!r}")
    return features[name]


def _optional(features: Features, name: str, num: int, default: int) -> npt.NDArray[Any]:
    found = features.get(name)
    if found is None:
        return np.full(num, default)
    if len(found) != num:
        raise ValueError(f"{len(found)} {name} for {num} inputs")
    return found


def _normalised(logits: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Log-probabilities that give the cells of a row all probability."""
    values = logits.astype(np.float64)
    with np.errstate(all="ignore"):
        high = values.max(axis=1, keepdims=True, initial=-np.inf)
        total = np.log(np.exp(values - high).sum(axis=1, keepdims=True)) + high
        result: npt.NDArray[np.float32] = (values - total).astype(np.float32)
    return result


def parse_example(data: bytes) -> dict[str, npt.NDArray[Any]]:
    """The features of a serialised tf.train.Example: int64 and float lists.

    Raises:
        ValueError: the bytes are no such message.
    """
    found: dict[str, npt.NDArray[Any]] = {}
    for features in _messages(data, 1):
        for entry in _messages(features, 1):
            name = b"".join(_messages(entry, 1)).decode(errors="replace")
            for feature in _messages(entry, 2):
                for number, _, value in _fields(feature):
                    if number == 2:
                        found[name] = _floats(value)
                    elif number == 3:
                        found[name] = _integers(value)
    return found


def _messages(data: bytes, wanted: int) -> Iterator[bytes]:
    """The values of a length-delimited field."""
    return (value for number, wire, value in _fields(data) if (number, wire) == (wanted, _BYTES))


def _fields(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Number, wire type and bytes of each field of a protocol buffer."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        wire, start = key & 7, at
        if wire == _BYTES:
            size, start = _varint(data, at)
            at = start + size
        elif wire == _VARINT:
            _, at = _varint(data, at)
        elif wire in (_EIGHT_BYTES, _FOUR_BYTES):
            at += 8 if wire == _EIGHT_BYTES else 4
        else:
            raise ValueError(f"wire type {wire} in a protocol buffer")
        if at > len(data):
            raise ValueError("a field of a protocol buffer ends behind its message")
        yield key >> 3, wire, data[start:at]


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(_LONGEST_VARINT):
        if at + shift >= len(data):
            break
        byte = data[at + shift]
        value |= (byte & 0x7F) << (7 * shift)
        if byte < 0x80:
            return value, at + shift + 1
    raise ValueError("a number of a protocol buffer does not end")


def _floats(data: bytes) -> npt.NDArray[np.float32]:
    parts = [value for number, _, value in _fields(data) if number == 1]
    joined = b"".join(parts)
    if len(joined) % 4:
        raise ValueError("a list of floats has half a number")
    return np.frombuffer(joined, "<f4")


def _integers(data: bytes) -> npt.NDArray[np.int64]:
    joined = b"".join(value for number, _, value in _fields(data) if number == 1)
    if not joined:
        return np.zeros(0, np.int64)
    digits = np.frombuffer(joined, np.uint8)
    ends = np.flatnonzero(digits < 0x80)
    if not len(ends) or ends[-1] != len(digits) - 1:
        raise ValueError("a list of integers does not end")
    starts = np.concatenate([[0], ends[:-1] + 1])
    if (ends - starts >= _LONGEST_VARINT).any():
        raise ValueError("a number of a protocol buffer does not end")
    place = np.arange(len(digits)) - np.repeat(starts, ends - starts + 1)
    values = (digits & 0x7F).astype(np.uint64) << (7 * place).astype(np.uint64)
    result: npt.NDArray[np.int64] = np.add.reduceat(values, starts).astype(np.int64)
    return result
