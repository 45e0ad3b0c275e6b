"""Places where a store can lie: a directory, `s3://`, `gs://`, `hf://`, all behind one protocol.

A place knows files by their name relative to the store. What it raises says what happened in our
words alone: a server's answer may repeat a key, a token or a signed URL.
"""

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit, urlunsplit

from caskd.store import files
from caskd.store.errors import CorruptError, UsageError
from caskd.store.retries import RetryPolicy, TransientError, retry

PIECE_BYTES = 8 << 20
MAX_SMALL_BYTES = 64 << 20
STAGING = "staging"


class Place(Protocol):
    """Somewhere files can be read and written; every call may raise TransientError."""

    url: str
    """The place without anything secret, for messages."""

    def size(self, name: str) -> int | None:
        """Bytes of a file, None where there is none."""

    def read(self, name: str, start: int, stop: int) -> bytes:
        """Bytes `start` to `stop` of a file, all of them.

        Raises:
            FileNotFoundError: there is no such file (a directory says CorruptError).
        """

    def read_small(self, name: str, limit: int) -> bytes | None:
        """A file in one request, None where there is none.

        Raises:
            CorruptError: it has more than `limit` bytes.
        """

    def write(self, name: str, data: bytes) -> None:
        """Put a file there whole, replacing what was there; after `flush` it can be read."""

    def create(self, name: str, data: bytes) -> bool:
        """Put a file there unless one is there; returns whether this call did it."""

    def sha256(self, name: str) -> str | None:
        """The place's own digest of a file; None where only reading tells."""

    def flush(self) -> None:
        """Make everything written visible, and remove what interrupted writes left."""

    def children(self) -> list[str]:
        """Names directly inside: of files, and of folders with a slash at the end."""

    def inside(self, name: str) -> "Place":
        """The place of a folder of this one."""


def clean_url(url: str | Path) -> str:
    """A URL without user, password, query and fragment, where secrets would stand."""
    text = str(url)
    if "://" not in text:
        return text
    parts = urlsplit(text)
    netloc, path = (re.sub(r"[^/]*@", "", part) for part in (parts.netloc, parts.path))
    return urlunsplit((parts.scheme, netloc, path, "", ""))


def is_remote(url: str | Path) -> bool:
    """Whether a store's URL is something else than a directory."""
    return "://" in str(url)


def open_place(url: str | Path) -> Place:
    """The place that a URL names; nothing is asked of it yet.

    Raises:
        UsageError: an unknown scheme, a secret inside the URL, or a missing extra.
    """
    if not is_remote(url):
        return DirectoryPlace(Path(url))
    parts, shown = urlsplit(str(url)), clean_url(url)
    if "@" in parts.netloc + parts.path or parts.query or parts.fragment:
        raise UsageError(
            f"{shown}: the URL has a user, a query or a fragment; expected only a bucket and a "
            "path. Give credentials in the environment (see docs/sharing.md)."
        )
    if parts.scheme in ("s3", "gs"):
        from caskd.store.object_place import ObjectPlace

        return ObjectPlace.open(parts.scheme, parts.netloc, parts.path.strip("/"))
    if parts.scheme == "hf":
        from caskd.store.hub_place import HubPlace

        return HubPlace.open(f"{parts.netloc}{parts.path}".strip("/"))
    raise UsageError(
        f"{shown}: unknown kind of place; expected a directory, s3://BUCKET/PATH, gs://BUCKET/PATH "
        "or hf://datasets/USER/NAME."
    )


def read_whole(place: Place, name: str, policy: RetryPolicy) -> bytes | None:
    """A metadata file, None where there is none.

    Raises:
        CorruptError: it is larger than any that caskd writes.
    """

    where = f"{place.url}/{name}"
    return retry(lambda: place.read_small(name, MAX_SMALL_BYTES), where, policy)


def read_sized(place: Place, name: str, limit: int) -> bytes | None:
    """A small file in two requests, its size and its content."""
    size = place.size(name)
    if size is None:
        return None
    if size > limit:
        raise CorruptError(f"{place.url}/{name}: {size:,} bytes, larger than it can be.")
    try:
        return place.read(name, 0, size)
    except FileNotFoundError:  # it went between the two
        return None


def sha256_of(place: Place, name: str, size: int, policy: RetryPolicy) -> str:
    """Digest of a file of known size, read piece by piece unless the place has it."""
    own = retry(lambda: place.sha256(name), f"{place.url}/{name}", policy)
    if own is not None:
        return own
    digest = hashlib.sha256()
    for start in range(0, size, PIECE_BYTES):
        digest.update(read_piece(place, name, start, min(start + PIECE_BYTES, size), policy))
    return digest.hexdigest()


def read_file(place: Place, name: str, size: int, policy: RetryPolicy) -> bytes:
    """A file of known size; each piece is asked for again on its own.

    Raises:
        FileNotFoundError: there is no such file.
    """
    pieces = range(0, size, PIECE_BYTES)
    return b"".join(
        read_piece(place, name, start, min(start + PIECE_BYTES, size), policy) for start in pieces
    )


def read_piece(place: Place, name: str, start: int, stop: int, policy: RetryPolicy) -> bytes:
    """Bytes `start` to `stop` of a file, asked for until they come."""
    return retry(lambda: place.read(name, start, stop), f"{place.url}/{name}", policy)


class DirectoryPlace:
    """A directory; a file gets its name only when it is whole and synced."""

    def __init__(self, root: Path) -> None:
        self.root, self.url = root, str(root)
        # Apart from what a writer keeps in staging, which is not ours to sweep.
        self._drafts = root / STAGING / "copies"

    def size(self, name: str) -> int | None:
        """Bytes of a regular file."""
        return files.size_inside(self.root, name)

    def read(self, name: str, start: int, stop: int) -> bytes:
        """Bytes `start` to `stop`; fewer are damage."""
        with files.open_inside(self.root, name) as handle:
            data = os.pread(handle, stop - start, start)
        if len(data) != stop - start:
            raise CorruptError(f"{self.url}/{name}: shorter than {stop:,} bytes.")
        return data

    def read_small(self, name: str, limit: int) -> bytes | None:
        """A whole file."""
        return read_sized(self, name, limit)

    def write(self, name: str, data: bytes) -> None:
        """Stage, sync, rename, sync the folder."""
        files.size_inside(self.root, name)  # refuses a way through links
        with _swept():
            files.replace_file(self.root / name, data, self._drafts)

    def create(self, name: str, data: bytes) -> bool:
        """The same with a link, of which exactly one of any number of callers makes the first."""
        files.size_inside(self.root, name)
        with _swept():
            return files.create_exclusive(self.root / name, data, self._drafts)

    def sha256(self, name: str) -> str | None:
        """Unknown without reading."""
        return None

    def flush(self) -> None:
        """Remove what earlier, interrupted copies staged."""
        files.remove_tree(self._drafts)
        with suppress(OSError):  # a writer's work is in it, or it is not there
            (self.root / STAGING).rmdir()

    def children(self) -> list[str]:
        """Names directly inside."""
        if not self.root.is_dir():
            return []
        return sorted(entry.name + "/" * entry.is_dir() for entry in self.root.iterdir())

    def inside(self, name: str) -> "DirectoryPlace":
        """A folder of this directory."""
        return DirectoryPlace(self.root / name)


@contextmanager
def _swept() -> Iterator[None]:
    """Another copy into the same directory may have finished and swept our draft."""
    try:
        yield
    except FileNotFoundError:
        raise TransientError("the draft was swept by another copy") from None
