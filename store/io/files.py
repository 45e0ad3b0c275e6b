"""Atomic, durable file operations, and reads that follow no link out of a store.

A file exists whole or not at all, also after a power cut. Every change of a store uses these
functions, each of which has a fault point. Reads use `open_inside`: regular files below the root,
through real folders. A missing file is damage; any other failure to read is an UnreadableError.
"""

import contextlib
import os
import shutil
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator
from errno import ELOOP, ENOTEMPTY
from pathlib import Path
from stat import S_ISDIR, S_ISLNK, S_ISREG

from caskd.store.errors import (
    CorruptError,
    NotRegularError,
    StoreError,
    StoreWriteError,
)
from caskd.store.io import faults
from caskd.store.io.disk import advice
from caskd.store.io.unreadable import unreadable

MAX_METADATA_BYTES = BLOCK_BYTES = 4 << 20
DRAFT_ATTEMPTS = 8


@contextlib.contextmanager
def _changing(path: Path, size: int = 0) -> Iterator[None]:
    """Turn an OSError into a StoreWriteError with path, cause and advice.

    FileExistsError and FileNotFoundError pass through to the caller.
    """
    try:
        yield
    except (FileExistsError, FileNotFoundError):
        raise
    except OSError as error:
        if error.errno == ENOTEMPTY:
            raise FileExistsError(error.errno, error.strerror, str(path)) from None
        amount = f" ({size:,} bytes)" if size else ""
        raise StoreWriteError(
            f"cannot write {path}{amount}: {error.strerror}; {advice(error.errno)} and run the "
            "same command again; what is finished is kept"
        ) from None


def fsync_directory(directory: Path) -> None:
    """Make renamed and created entries of `directory` durable."""
    with _changing(directory):
        faults.point("directory.fsync", directory)
        handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def make_directories(path: Path, *, durable: bool = False) -> None:
    """Create `path` and its missing parents; with `durable`, sync the created entries."""
    with _changing(path):
        missing = [] if path.is_dir() else [path]
        while missing and not missing[-1].parent.is_dir():
            missing.append(missing[-1].parent)
        for directory in reversed(missing):
            faults.point("directory.make", directory)
            directory.mkdir(exist_ok=True)
    for directory in missing if durable else []:
        fsync_directory(directory.parent)


def write_synced(path: Path, data: bytes) -> None:
    """Write and fsync `path`, a new file that no other process knows yet."""
    make_directories(path.parent)
    with _changing(path, len(data)):
        faults.point("file.write", path)
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            faults.point("file.fsync", path)
            os.fsync(file.fileno())


def rename(source: Path, target: Path) -> None:
    """Rename a synced file or folder; the caller syncs the target's folder."""
    with _changing(target):
        faults.point("file.rename", source, target)
        os.replace(source, target)


def unlink(path: Path) -> None:
    """Remove a file or link if it exists."""
    with _changing(path):
        faults.point("file.unlink", path)
        path.unlink(missing_ok=True)


def remove_tree(path: Path) -> None:
    """Remove a folder and its content if it exists; other processes may be removing it too."""
    if path.is_dir() and not path.is_symlink():
        with _changing(path):
            faults.point("tree.remove", path)
        shutil.rmtree(path, ignore_errors=True)


def _with_draft(
    path: Path, data: bytes, scratch: Path | None, publish: Callable[[Path], None]
) -> None:
    """Write a synced draft in `scratch` and publish it; retry if another process removed it."""
    make_directories(path.parent)
    for attempts_left in reversed(range(DRAFT_ATTEMPTS)):
        unique = uuid.uuid4().hex
        draft = path.with_name(f".{path.name}.{unique}") if scratch is None else scratch / unique
        try:
            write_synced(draft, data)
            publish(draft)
            return
        except FileNotFoundError:
            if not attempts_left:
                raise
        finally:
            unlink(draft)


def replace_file(path: Path, data: bytes, scratch: Path | None = None) -> None:
    """Write `data` to `path` atomically, replacing any older file.

    A kill may leave a draft in `scratch`, or beside `path` without `scratch`.
    """

    def put(draft: Path) -> None:
        rename(draft, path)

    _with_draft(path, data, scratch, put)
    fsync_directory(path.parent)


def create_exclusive(path: Path, data: bytes, scratch: Path | None = None) -> bool:
    """Create `path` with `data` unless it exists; returns whether this call created it.

    The file is a hard link to a synced draft (see `replace_file`): complete or absent, and exactly
    one of any number of racing callers creates it.
    """

    def link(draft: Path) -> None:
        with _changing(path, len(data)):
            faults.point("file.link", draft, path)
            os.link(draft, path)

    try:
        _with_draft(path, data, scratch, link)
        created = True
    except FileExistsError:
        created = False
    # Also if another process won: later writes must not become durable before the decision does.
    fsync_directory(path.parent)
    return created


def sync_ancestors(root: Path, names: Iterable[str]) -> None:
    """Sync every folder between `root` and the files `names` below it."""
    folders = {root} | {
        root.joinpath(*parts[:depth])
        for parts in (name.split("/") for name in names)
        for depth in range(1, len(parts))
    }
    for folder in sorted(folders, reverse=True):
        fsync_directory(folder)


@contextlib.contextmanager
def reading(name: str) -> Iterator[None]:
    """Turn an OSError of a read into an error of the store that has `name`, cause and advice.

    Raises:
        CorruptError: the file does not exist.
        NotRegularError: it is a link.
        UnreadableError: every other cause; the file may be intact.
    """
    try:
        yield
    except StoreError:
        raise
    except (FileNotFoundError, NotADirectoryError):
        raise CorruptError(f"{name}: missing.") from None
    except OSError as error:
        if error.errno == ELOOP:
            raise NotRegularError(f"{name}: a link; links are not followed.") from None
        raise unreadable(error, name) from None


def mode_of(path: Path, name: str | None = None) -> int | None:
    """File type and permissions of `path`, links not followed; None if it does not exist.

    Raises:
        UnreadableError: the system cannot tell; the message has `name`, by default that of `path`.
    """
    with reading(name or path.name):
        try:
            return os.lstat(path).st_mode
        except (FileNotFoundError, NotADirectoryError):
            return None


def exists(path: Path) -> bool:
    """Whether `path` exists, be it a broken link; unreadable is an error, not an absence."""
    return mode_of(path) is not None


def is_folder(path: Path) -> bool:
    """Whether `path` is a folder and no link; unreadable is an error, not an absence."""
    mode = mode_of(path)
    return mode is not None and S_ISDIR(mode)


def is_link(path: Path) -> bool:
    """Whether `path` is a link; unreadable is an error."""
    mode = mode_of(path)
    return mode is not None and S_ISLNK(mode)


def entries(folder: Path) -> list[str]:
    """Sorted names of a folder's entries; none if it is missing, or is no folder.

    Raises:
        UnreadableError: it cannot be listed.
    """
    if not is_folder(folder):
        return []
    with reading(folder.name):
        return sorted(os.listdir(folder))


def regular_size(path: Path, name: str | None = None) -> int | None:
    """Size of a regular file, None if it does not exist.

    Raises:
        NotRegularError: `path` is a link, pipe, device or folder.
        UnreadableError: the system cannot tell; the message has `name`, by default that of `path`.
    """
    with reading(name or path.name):
        try:
            status = os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
    if not S_ISREG(status.st_mode):
        raise NotRegularError(f"{name or path.name}: {_what_it_is(status.st_mode)}")
    return status.st_size


def _what_it_is(mode: int) -> str:
    if not S_ISLNK(mode):
        return "not a regular file; remove it from the store"
    return (
        "not a regular file but a link, and links are not followed; expected the file itself; copy "
        "the store with cp -rL STORE COPY, or fetch it with caskd store pull"
    )


def size_inside(root: Path, name: str) -> int | None:
    """Size of the regular file `name` below `root`, None if it does not exist.

    Raises:
        NotRegularError: the file or a folder of its path is a link, pipe or device.
        UnreadableError: a folder of its path cannot be searched.
    """
    parts = name.split("/")
    for depth in range(1, len(parts)):
        mode = mode_of(root.joinpath(*parts[:depth]), name)
        if mode is None:
            return None
        if not S_ISDIR(mode):
            raise NotRegularError(
                f"{'/'.join(parts[:depth])}: not a folder (links are not followed)."
            )
    return regular_size(root / name, name)


@contextlib.contextmanager
def open_inside(root: Path, name: str) -> Iterator[int]:
    """A file descriptor for reading the regular file `name` below `root`.

    Raises:
        CorruptError: the file is missing.
        UnreadableError: the file exists but cannot be read; it may be intact.
        NotRegularError: the file or a folder of its path is a link, pipe or device.
    """
    with reading(name):
        if size_inside(root, name) is None:
            raise CorruptError(f"{name}: missing")
        handle = os.open(root / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            yield handle
        finally:
            os.close(handle)


def read_small(root: Path, name: str, limit: int = MAX_METADATA_BYTES) -> bytes:
    """Read a metadata file of bounded size.

    Raises:
        CorruptError: the file is missing or larger than `limit`.
        UnreadableError: it exists but cannot be read.
    """
    with open_inside(root, name) as handle:
        size = os.fstat(handle).st_size
        if size > limit:
            raise CorruptError(f"{name}: {size:,} bytes; expected at most {limit:,}.")
        return read_at(handle, 0, size)


def read_at(handle: int, start: int, count: int) -> bytes:
    """`count` bytes from `start` on, fewer only at the file's end: one read may return a part."""
    data = os.pread(handle, count, start)
    while len(data) < count and (more := os.pread(handle, count - len(data), start + len(data))):
        data += more
    return data


def blocks(handle: int) -> Iterator[bytes]:
    """A file's bytes in large blocks."""
    while block := os.read(handle, BLOCK_BYTES):
        yield block


def crc32_inside(root: Path, name: str) -> int:
    """crc32 of the file `name` below `root`, read in large blocks."""
    checksum = 0
    with open_inside(root, name) as handle:
        for block in blocks(handle):
            checksum = zlib.crc32(block, checksum)
    return checksum
