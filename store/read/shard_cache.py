"""A directory that caches files of remote stores and evicts the least recently used.

Several processes may share it. A file gets its name when it is complete and checked. One process
fetches a file while others that need it wait. An eviction at the wrong moment, or a wrong clock,
costs a second fetch and nothing else.
"""

import fcntl
import os
import uuid
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from caskd.store.errors import StoreWriteError, UsageError
from caskd.store.format import DATA
from caskd.store.io import CACHE_VARIABLE, cache_folder, descriptors, files, is_limit_reached

LIMIT_VARIABLE = "CASKD_CACHE_GB"
DEFAULT_GB = 100.0
_LOCKS = 256
_EVICTIONS = 8
_SCANS_PER_LIMIT = 32


class ShardCache:
    """Files below `root`, together about `limit` bytes at most.

    A file that a reader has open occupies its space until it is closed, beyond the limit.
    """

    def __init__(self, root: Path, limit: int) -> None:
        self.root, self.limit = root, limit
        self._unseen = limit  # bytes fetched since the last scan; the first fetch scans
        self._make_folders()

    def _make_folders(self) -> None:
        """Make the cache's folders; somebody may empty the cache at any time."""
        try:
            for folder in (self.root, self.root / "drafts", self.root / "locks"):
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise StoreWriteError(
                f"{self.root}: cannot be used as the cache of remote stores ({error.strerror}); "
                f"set {CACHE_VARIABLE} to a directory on a local disk"
            ) from None

    @classmethod
    def from_environment(cls) -> "ShardCache":
        """The cache at CASKD_CACHE (~/.cache/caskd), of CASKD_CACHE_GB (100) gigabytes.

        Raises:
            UsageError: the limit is not a positive number.
        """
        text = os.environ.get(LIMIT_VARIABLE, str(DEFAULT_GB))
        try:
            limit = int(float(text) * 1e9)
        except (ValueError, OverflowError):
            limit = 0
        if limit <= 0:
            raise UsageError(f"{LIMIT_VARIABLE}={text}: expected gigabytes; set 200 or 0.5, say")
        return cls(cache_folder(), limit)

    def keep(self, name: str, size: int, fetch: Callable[[], bytes]) -> Path:
        """The path of the file `name` of `size` bytes.

        `fetch` returns its checked content; it is called only if the cache lacks the file.
        """
        path = self.root / name
        if not self._touch(path, size):
            with self._only_one(name):
                if not self._touch(path, size):
                    self.put(name, fetch())
        return path

    def put(self, name: str, data: bytes) -> None:
        """Write a complete file, replacing an older one."""
        path = self.root / name
        for attempt in range(_EVICTIONS):
            draft = self.root / "drafts" / uuid.uuid4().hex
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                draft.write_bytes(data)
                os.replace(draft, path)
                break
            except OSError as error:
                draft.unlink(missing_ok=True)
                # With a very small limit, another process may have evicted even the draft.
                if not isinstance(error, FileNotFoundError) or attempt == _EVICTIONS - 1:
                    raise StoreWriteError(
                        f"{path}: cannot be written ({error.strerror}); {_advice(error)}"
                    ) from None
                self._make_folders()
        self._unseen += len(data)
        if self._unseen * _SCANS_PER_LIMIT >= self.limit:
            self._unseen = 0
            self._evict(path, len(data))

    def drop(self, name: str) -> None:
        """Remove a damaged file."""
        (self.root / name).unlink(missing_ok=True)

    def _touch(self, path: Path, size: int) -> bool:
        """Whether the cache holds the file; marks it as used now."""
        with files.reading(str(path)):
            try:
                if os.lstat(path).st_size != size:
                    return False
                os.utime(path)
            except FileNotFoundError:
                return False
        return True

    @contextmanager
    def _only_one(self, name: str) -> Iterator[None]:
        """Keep others from fetching the same file; without file locks, they fetch it too."""
        number = zlib.crc32(name.encode()) % _LOCKS
        lock = self.root / "locks" / f"{number:03d}"
        if not lock.parent.is_dir():
            self._make_folders()
        with files.reading(str(lock)):
            handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            with suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def _evict(self, newest: Path, size_of_newest: int) -> None:
        """Remove the least recently used files until the rest fits."""
        found = []
        for path in (*self.root.glob("drafts/*"), *self.root.glob(f"*/{DATA}/*/c/**/*")):
            with suppress(FileNotFoundError):
                status = path.lstat()
                if path != newest and not path.is_dir():
                    found.append((status.st_mtime_ns, status.st_size, path))
        total = sum(size for _, size, _ in found) + size_of_newest
        for _, size, path in sorted(found):
            if total <= self.limit:
                return
            path.unlink(missing_ok=True)
            total -= size


def _advice(error: OSError) -> str:
    if is_limit_reached(error):
        return descriptors.advice()
    return f"free some space, or set {CACHE_VARIABLE} or {LIMIT_VARIABLE} to fit the disk"
