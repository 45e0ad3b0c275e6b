"""Places where a store can lie: a directory, `s3://`, `gs://`, `hf://`, all behind one protocol.

A place knows files by their name relative to the store. What it raises says what happened in our
words alone: a server's answer may repeat a key, a token or a signed URL.
"""

import hashlib
import random
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar
from urllib.parse import urlsplit, urlunsplit

from caskd.store.errors import CorruptError, StoreError

PIECE_BYTES = 8 << 20
MAX_SMALL_BYTES = 64 << 20
T = TypeVar("T")


class TransientError(Exception):
    """No answer, or one that may be another next time; the text never holds a server's words."""


@dataclass(frozen=True)
class RetryPolicy:
    """How often a request is tried, and how long the pauses are.

    The pause before attempt n + 1 is random between 0 and `first_pause` x 2**n seconds, at most
    `longest_pause`: clients that failed together do not come back together.
    """

    attempts: int = 8
    first_pause: float = 0.25
    longest_pause: float = 15.0

    def pauses(self, rng: random.Random) -> Iterator[float]:
        """Seconds to wait between the attempts, one fewer than there are attempts."""
        for attempt in range(self.attempts - 1):
            yield rng.uniform(0, min(self.longest_pause, self.first_pause * 2**attempt))


def retry(call: Callable[[], T], where: str, policy: RetryPolicy) -> T:
    """Call until it does not raise TransientError.

    Raises:
        StoreError: every attempt failed; names `where` and the last reason.
    """
    for pause in policy.pauses(random.Random()):
        try:
            return call()
        except TransientError:
            time.sleep(pause)
    try:
        return call()
    except TransientError as error:
        raise StoreError(
            f"{where}: {error}, {policy.attempts} times in a row. "
            "Run the same command again later: it goes on where it stopped."
        ) from None


class Storage(Protocol):
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

    def inside(self, name: str) -> "Storage":
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


def read_whole(place: Storage, name: str, policy: RetryPolicy) -> bytes | None:
    """A metadata file, None where there is none.

    Raises:
        CorruptError: it is larger than any that caskd writes.
    """

    where = f"{place.url}/{name}"
    return retry(lambda: place.read_small(name, MAX_SMALL_BYTES), where, policy)


def read_sized(place: Storage, name: str, limit: int) -> bytes | None:
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


def sha256_of(place: Storage, name: str, size: int, policy: RetryPolicy) -> str:
    """Digest of a file of known size, read piece by piece unless the place has it."""
    own = retry(lambda: place.sha256(name), f"{place.url}/{name}", policy)
    if own is not None:
        return own
    digest = hashlib.sha256()
    for start in range(0, size, PIECE_BYTES):
        digest.update(read_piece(place, name, start, min(start + PIECE_BYTES, size), policy))
    return digest.hexdigest()


def read_file(place: Storage, name: str, size: int, policy: RetryPolicy) -> bytes:
    """A file of known size; each piece is asked for again on its own.

    Raises:
        FileNotFoundError: there is no such file.
    """
    pieces = range(0, size, PIECE_BYTES)
    return b"".join(
        read_piece(place, name, start, min(start + PIECE_BYTES, size), policy) for start in pieces
    )


def read_piece(place: Storage, name: str, start: int, stop: int, policy: RetryPolicy) -> bytes:
    """Bytes `start` to `stop` of a file, asked for until they come."""
    return retry(lambda: place.read(name, start, stop), f"{place.url}/{name}", policy)
