"""Reads files and JSON that a stranger may have written: bounded in size, depth and numbers.

A `StrangeFileError` has the problem alone; its caller adds which file, what was expected and what
to do. It is a ValueError, as the errors of `json` are, and no UsageError, which is complete.
"""

import json
import math
import os
from pathlib import Path
from stat import S_ISREG
from typing import Any

from caskd.store.errors import CaskdError

MAX_FILE_BYTES = 64 << 20
MAX_JSON_DEPTH = 64
_LARGEST = 10**300
"""Integers stay below it, so that each has a float."""


class StrangeFileError(CaskdError, ValueError):
    """A file is not a regular one or too large, or its JSON is not acceptable."""


def read_regular(path: Path, limit: int = MAX_FILE_BYTES) -> bytes:
    """Content of a regular file; never waits for a pipe, never reads a device.

    Raises:
        OSError: the file is missing or unreadable.
        StrangeFileError: it is a folder, pipe or device, or larger than `limit`.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(handle)
        if not S_ISREG(status.st_mode):
            raise StrangeFileError("not a regular file")
        if status.st_size > limit:
            raise StrangeFileError(f"{status.st_size:,} bytes, more than {limit:,}")
        with open(handle, "rb", closefd=False) as file:
            return file.read(limit + 1)
    finally:
        os.close(handle)


def read_json(path: Path, *, constants: bool = False) -> Any:
    """The JSON in a regular file; arguments and errors are those of the two functions it calls."""
    return parse_json(read_regular(path), constants=constants)


def read_json_object(path: Path, *, constants: bool = False) -> dict[str, Any]:
    """The JSON object in a regular file.

    Raises:
        OSError: the file is missing or unreadable.
        StrangeFileError: it holds no JSON object.
    """
    value = read_json(path, constants=constants)
    if not isinstance(value, dict):
        raise StrangeFileError(f"holds a JSON {type(value).__name__}, not an object")
    return value


def parse_json(text: str | bytes, *, depth: int = MAX_JSON_DEPTH, constants: bool = False) -> Any:
    """Parse JSON in UTF-8, with or without a byte order mark.

    Args:
        text: the JSON.
        depth: levels of nesting that are accepted.
        constants: accept NaN and Infinity, which Python and transformers write.

    Raises:
        StrangeFileError: not JSON, nested deeper, a key twice, or a number without a finite float.
    """
    try:
        decoded = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        value = json.loads(
            decoded,
            parse_int=_bounded_int,
            parse_float=_finite_float,
            parse_constant=None if constants else _refuse_constant,
            object_pairs_hook=_unique_keys,
        )
    except StrangeFileError:
        raise
    except RecursionError:
        raise StrangeFileError(f"JSON nested deeper than {depth} levels") from None
    except UnicodeDecodeError as error:
        raise StrangeFileError(f"not UTF-8 at byte {error.start:,}") from None
    except ValueError as error:
        raise StrangeFileError(f"not valid JSON: {error}") from None
    if depth_exceeds(value, depth):
        raise StrangeFileError(f"JSON nested deeper than {depth} levels")
    return value


def depth_exceeds(value: Any, limit: int) -> bool:
    """Whether lists and objects are nested in more than `limit` levels."""
    level = [value]
    for _ in range(limit):
        inside = [list(v.values()) if isinstance(v, dict) else v for v in level]
        level = [item for v in inside if isinstance(v, list) for item in v]
        if not level:
            return False
    return True


def _bounded_int(digits: str) -> int:
    if len(digits) > 301:  # before int(), whose time grows with the square of the digits
        raise StrangeFileError(f"a number of {len(digits):,} digits")
    value = int(digits)
    if abs(value) >= _LARGEST:
        raise StrangeFileError(f"a number of {len(digits):,} digits")
    return value


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise StrangeFileError(f"the number {text[:20]} is too large")
    return value


def _refuse_constant(name: str) -> None:
    raise StrangeFileError(f"{name} is no JSON number")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for n, key in enumerate(keys) if key in keys[:n])
        raise StrangeFileError(f"the key {ascii(twice)[:60]} stands twice in an object")
    return found
