"""Checks of the JSON of a store that may come from an untrusted source.

No number or name from a store allocates memory, opens a file or indexes an array before it passed
these checks. The limits are far beyond what caskd writes.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from caskd.store.errors import UnsafeError
from caskd.store.format.layout import CELL_CHUNK
from caskd.store.format.names import STORE_JSON
from caskd.store.format.row_encodings import ROW_ENCODINGS
from caskd.store.format.rows import ROW_KINDS
from caskd.store.io import StrangeFileError, value_text
from caskd.store.io import parse_json as parse_json_text

MAX_DEPTH = 16
MAX_PLAIN_JSON = 4 << 20
MAX_CHUNK_CELLS = 1 << 22
MAX_TASKS = 1 << 16
LIMITS = {
    "num_examples": 1 << 32,
    "num_tokens": 1 << 35,
    "num_rows": 1 << 35,
    "num_shards": 1 << 20,
    "shard_rows": 1 << 24,
    "chunk_rows": CELL_CHUNK,
    "num_cells": (1 << 16) - 1,
    "size": 1 << 21,
}
"""Largest value of each count in store.json; `num_cells` and `size` stand in the identity."""
_OPTIONAL_FACTS = ("non_finite_examples", "counts")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.]*(/[A-Za-z0-9_][A-Za-z0-9_.]*)*")
_HEX = re.compile(r"[0-9a-f]+")


def parse_json(data: bytes, where: str) -> Any:
    """Parse JSON of a store; `where` names it in errors.

    Raises:
        UnsafeError: not UTF-8 JSON, nested too deeply, or a large file of mostly punctuation, which
            would expand into far more memory.
    """
    # A large JSON file of a valid store is a list of files: mostly names and digests.
    marks = data.count(b",") + 4 * (data.count(b"{") + data.count(b"["))
    if len(data) > MAX_PLAIN_JSON and marks > len(data) // 16:
        raise UnsafeError(
            f"{where}: {len(data):,} bytes of JSON with {marks:,} separators; no store needs that"
        )
    try:
        return parse_json_text(data, depth=MAX_DEPTH)
    except StrangeFileError as error:
        raise UnsafeError(f"{where}: not valid JSON of a store ({error})") from None


def is_count(value: Any, limit: int = 1 << 62) -> bool:
    """Whether `value` is an integer from 0 to `limit`."""
    return type(value) is int and 0 <= value <= limit


def is_counts(value: Any) -> bool:
    """Whether `value` maps names to counts."""
    return isinstance(value, dict) and all(map(is_count, value.values()))


def _is_hex(value: Any, digits: int) -> bool:
    return isinstance(value, str) and len(value) == digits and bool(_HEX.fullmatch(value))


def is_record(value: Any) -> bool:
    """Whether parsed JSON has the fields and types of a commit record."""
    return (
        isinstance(value, dict)
        and {"unit", "files", "num_rows", "statuses"} <= value.keys()
        and value.keys() <= {"unit", "files", "num_rows", "statuses", *_OPTIONAL_FACTS}
        and is_count(value["num_rows"])
        and is_counts(value["statuses"])
        and _is_list_of(value.get("non_finite_examples", []), is_count)
        and is_counts(value.get("counts", {}))
        and _is_list_of(value["files"], _is_file_record)
    )


def _is_list_of(value: Any, check: Any) -> bool:
    return isinstance(value, list) and all(map(check, value))


def _is_string(value: Any) -> bool:
    return isinstance(value, str)


def _is_file_record(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == {"name", "size", "crc32", "crc32c", "sha256"}
        and isinstance(value["name"], str)
        and is_count(value["size"])
        and _is_hex(value["crc32"], 8)
        and _is_hex(value["crc32c"], 8)
        and _is_hex(value["sha256"], 64)
    )


def is_seal(value: Any) -> bool:
    """Whether parsed JSON has the fields and types of a seal."""
    counts = ("num_examples", "num_rows", "num_shards")
    return (
        isinstance(value, dict)
        and value.keys() - {"counts"} == {*counts, "statuses", "bytes", "commits_digest"}
        and is_counts(value.get("counts", {}))
        and all(is_count(value[name]) for name in counts)
        and is_counts(value["statuses"])
        and is_counts(value["bytes"])
        and _is_hex(value["commits_digest"], 64)
    )


def check_names(names: Sequence[str], where: str) -> None:
    """Check names of files, relative to the store.

    Raises:
        UnsafeError: a name leaves the store, or is listed twice.
    """
    for name in names:
        if len(name) > 200 or not _NAME.fullmatch(name):
            raise UnsafeError(
                f"{where}: {value_text(name)} is not a valid name of a file in a store"
            )
    if len({*names}) < len(names):
        raise UnsafeError(f"{where}: lists the same file twice")


def check_store_json(value: Any, where: str) -> None:
    """Check types, ranges and agreement of identity, geometry and tasks.

    Raises:
        UnsafeError: names the first invalid field.
    """
    if not isinstance(value, dict) or not isinstance(value.get("geometry"), dict):
        raise UnsafeError(f"{where}: not a valid {STORE_JSON} (no geometry)")
    identity, geometry, tasks = value.get("identity"), value["geometry"], value.get("tasks")
    if not isinstance(identity, dict) or not _has_types(identity):
        raise UnsafeError(f"{where}: not a valid {STORE_JSON} (identity)")
    if not _is_list_of(tasks, _is_string) or len(value["tasks"]) > MAX_TASKS:
        raise UnsafeError(f"{where}: not a valid {STORE_JSON} (tasks)")
    capture = identity["capture"]
    counts = {
        **geometry,
        "num_cells": _num_cells(capture),
        "size": identity["vocabulary"]["size"],
    }
    if counts.keys() != LIMITS.keys():
        raise UnsafeError(f"{where}: not a valid {STORE_JSON} (geometry)")
    for name, limit in LIMITS.items():
        if not is_count(counts[name], limit) or counts[name] == 0:
            raise UnsafeError(
                f"{where}: {name} is {value_text(counts[name])}; expected an integer "
                f"from 1 to {limit:,}"
            )
    problem = geometry_problem(counts)
    if problem:
        raise UnsafeError(f"{where}: {problem}.")
    if not _are_special_tokens(identity["vocabulary"]):
        raise UnsafeError(f"{where}: not a valid {STORE_JSON} (eos_id, bos_id or special_ids).")


def _num_cells(capture: Mapping[str, Any]) -> Any:
    """k by a capture, or the first of its parts that is no positive integer."""
    parts = [capture[name] for name in ROW_KINDS[capture["kind"]].cells_keys]
    wrong = [part for part in parts if not is_count(part) or part == 0]
    return wrong[0] if wrong else sum(parts)


_STRINGS = {
    "teacher": ("name",),
    "vocabulary": ("digest", "tokenizer_digest"),
    "text": ("kind",),
    "capture": ("kind", "load_dtype"),
}


def _has_types(identity: Mapping[str, Any]) -> bool:
    """Whether an identity has every field that caskd reads, with the right type."""
    for part, names in _STRINGS.items():
        section = identity.get(part)
        if not isinstance(section, dict):
            return False
        if not all(isinstance(section.get(name), str) for name in names):
            return False
    encoding, kind = identity.get("encoding"), identity["capture"]["kind"]
    return (
        isinstance(encoding, str)
        and (kind, encoding) in ROW_ENCODINGS
        and identity["capture"].keys() >= {*ROW_KINDS[kind].cells_keys}
        and "size" in identity["vocabulary"]
        and {"revision"} <= identity["teacher"].keys()
        and {"eos"} <= identity["text"].keys()
        and type(identity["text"].get("rule", 1)) is int
    )


def _are_special_tokens(vocabulary: Mapping[str, Any]) -> bool:
    """Whether the special tokens of a vocabulary, where it has such fields, are ids in it."""
    last = vocabulary["size"] - 1
    single = (vocabulary.get(name) for name in ("eos_id", "bos_id"))
    several = vocabulary.get("special_ids", [])
    return all(id_ is None or is_count(id_, last) for id_ in single) and _is_list_of(
        several, lambda id_: is_count(id_, last)
    )


def geometry_problem(counts: Mapping[str, int]) -> str | None:
    """The first contradiction in a geometry of positive counts, in words; None for a valid one."""
    shard_rows, chunk_rows = counts["shard_rows"], counts["chunk_rows"]
    capacity = counts["num_shards"] * shard_rows
    checks = {
        "chunk_rows must divide shard_rows": shard_rows % chunk_rows == 0,
        f"chunk_rows must be {CELL_CHUNK}, or a smaller shard_rows": chunk_rows
        == min(shard_rows, CELL_CHUNK),
        f"a chunk has more than {MAX_CHUNK_CELLS:,} cells": chunk_rows * counts["num_cells"]
        <= MAX_CHUNK_CELLS,
        "num_rows exceed the rows of all shards": counts["num_rows"] <= capacity,
        "num_shards is larger than num_rows": counts["num_shards"] <= counts["num_rows"],
        "num_rows is larger than num_tokens": counts["num_rows"] <= counts["num_tokens"],
    }
    return next((text for text, holds in checks.items() if not holds), None)
