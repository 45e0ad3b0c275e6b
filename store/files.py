"""Files that are there whole or not at all, also after a power cut."""

import os
import uuid
from pathlib import Path
from stat import S_ISREG

from caskd.store.errors import CorruptError, UnsafeError

MAX_METADATA_BYTES = 64 << 20


def fsync_directory(directory: Path) -> None:
    """Make renames and new names in `directory` durable."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_synced(path: Path, data: bytes) -> None:
    """Write and fsync `path`, which nobody else knows of yet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, data: bytes) -> None:
    """Put `data` at `path` in one step, replacing what was there."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    write_synced(temporary, data)
    os.replace(temporary, path)
    fsync_directory(path.parent)


def create_exclusive(path: Path, data: bytes) -> bool:
    """Create `path` with `data` unless it exists; returns whether this call created it.

    A hard link to a synced temporary file: whole or absent, and exactly one of any number of
    racing callers wins. A lost answer (the link was made, the call failed) shows as an existing
    file with equal content, which callers treat as success.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    write_synced(temporary, data)
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        temporary.unlink()
    fsync_directory(path.parent)
    return True


def move_file(source: Path, target: Path) -> None:
    """Rename a synced file into place."""
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(source, target)
    fsync_directory(target.parent)


def regular_size(path: Path) -> int | None:
    """Size of a regular file, None if there is none.

    Raises:
        UnsafeError: a link, pipe, device or folder stands there.
    """
    try:
        status = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not S_ISREG(status.st_mode):
        raise UnsafeError(f"{path.name}: not a regular file; caskd reads nothing else in a store.")
    return status.st_size


def read_small(path: Path) -> bytes:
    """Read a metadata file of bounded size.

    Raises:
        CorruptError: missing or larger than any that caskd writes.
    """
    size = regular_size(path)
    if size is None:
        raise CorruptError(f"{path.parent.name}/{path.name}: missing.")
    if size > MAX_METADATA_BYTES:
        raise CorruptError(
            f"{path.name}: {size:,} bytes, larger than any metadata file of a store."
        )
    return path.read_bytes()
