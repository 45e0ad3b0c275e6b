"""Storage: one protocol for a directory, `s3://`, `gs://` and `hf://`, and the retries around it.

A storage addresses files by their name relative to the store. Its errors never quote a server,
because a response may repeat an access key, a token or a signed URL.
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
    """A request failed in a way that a retry may cure; the text never quotes the server."""


@dataclass(frozen=True)
class RetryPolicy:
    """Number of attempts of a request, and the pauses between them.

    The pause after attempt n (from 0) is random between 0 and `first_pause` x 2**n seconds, at most
    `longest_pause`, so that clients that failed together do not retry together.
    """

    attempts: int = 8
    first_pause: float = 0.25
    longest_pause: float = 15.0

    def pauses(self, rng: random.Random) -> Iterator[float]:
        """Seconds to wait between attempts, `attempts` - 1 numbers."""
        for attempt in range(self.attempts - 1):
            yield rng.uniform(0, min(self.longest_pause, self.first_pause * 2**attempt))


def retry(call: Callable[[], T], where: str, policy: RetryPolicy) -> T:
    """Run `call` again until it does not raise TransientError.

    Raises:
        StoreError: every attempt failed; the message has `where` and the last reason.
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
            f"{where}: {error}, {policy.attempts} times in a row; "
            "run the same command again later; it resumes where it stopped"
        ) from None


class Storage(Protocol):
    """A folder of files that can be read and written; every method may raise TransientError."""

    url: str
    """URL or path for messages, free of secrets."""

    def size(self, name: str) -> int | None:
        """Size of a file in bytes, None if it does not exist."""

    def read(self, name: str, start: int, stop: int) -> bytes:
        """Bytes `start` to `stop` of a file, never fewer.

        Raises:
            FileNotFoundError: the file does not exist (a directory raises CorruptError).
        """

    def read_small(self, name: str, limit: int) -> bytes | None:
        """A whole file, None if it does not exist.

        Raises:
            CorruptError: it has more than `limit` bytes.
        """

    def write(self, name: str, data: bytes) -> None:
        """Write a whole file, replacing any older one; it is readable after `flush`."""

    def create(self, name: str, data: bytes) -> bool:
        """Create a file unless it exists; returns whether this call created it."""

    def sha256(self, name: str) -> str | None:
        """Digest that the storage keeps of a file; None if only reading the file gives it."""

    def flush(self) -> None:
        """Make all writes visible and remove leftovers of interrupted writes."""

    def children(self) -> list[str]:
        """Names of files and folders directly inside; a folder's name ends in a slash."""

    def inside(self, name: str) -> "Storage":
        """The storage of a folder inside this one."""


def clean_url(url: str | Path) -> str:
    """A URL without its user, password, query and fragment, the parts that can hold secrets."""
    text = str(url)
    if "://" not in text:
        return text
    parts = urlsplit(text)
    netloc, path = (re.sub(r"[^/]*@", "", part) for part in (parts.netloc, parts.path))
    return urlunsplit((parts.scheme, netloc, path, "", ""))


def is_remote(url: str | Path) -> bool:
    """Whether `url` has a scheme; if not, it is a directory."""
    return "://" in str(url)


def read_whole(storage: Storage, name: str, policy: RetryPolicy) -> bytes | None:
    """Read a metadata file with retries; None if it does not exist.

    Raises:
        CorruptError: it is larger than any metadata file that caskd writes.
    """
    where = f"{storage.url}/{name}"
    return retry(lambda: storage.read_small(name, MAX_SMALL_BYTES), where, policy)


def read_sized(storage: Storage, name: str, limit: int) -> bytes | None:
    """`Storage.read_small` in two requests: size, then content."""
    size = storage.size(name)
    if size is None:
        return None
    if size > limit:
        raise CorruptError(f"{storage.url}/{name}: {size:,} bytes; expected at most {limit:,}")
    try:
        return storage.read(name, 0, size)
    except FileNotFoundError:  # removed between the two requests
        return None


def sha256_of(storage: Storage, name: str, size: int, policy: RetryPolicy) -> str:
    """sha256 of a file of known size: from the storage if it keeps one, else by reading pieces."""
    kept = retry(lambda: storage.sha256(name), f"{storage.url}/{name}", policy)
    if kept is not None:
        return kept
    digest = hashlib.sha256()
    for start in range(0, size, PIECE_BYTES):
        digest.update(read_piece(storage, name, start, min(start + PIECE_BYTES, size), policy))
    return digest.hexdigest()


def read_file(storage: Storage, name: str, size: int, policy: RetryPolicy) -> bytes:
    """Read a file of known size in pieces; each piece has its own retries.

    Raises:
        FileNotFoundError: the file does not exist.
    """
    pieces = range(0, size, PIECE_BYTES)
    return b"".join(
        read_piece(storage, name, start, min(start + PIECE_BYTES, size), policy) for start in pieces
    )


def read_piece(storage: Storage, name: str, start: int, stop: int, policy: RetryPolicy) -> bytes:
    """Bytes `start` to `stop` of a file, with retries."""
    return retry(lambda: storage.read(name, start, stop), f"{storage.url}/{name}", policy)
