"""Storage in a directory: a local disk or a network file system."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from caskd.store.errors import CorruptError
from caskd.store.format import STAGING
from caskd.store.io import files
from caskd.store.storage.base import TransientError, read_sized


class DirectoryStorage:
    """A directory; a file appears under its name only when it is complete and synced."""

    def __init__(self, root: Path) -> None:
        self.root, self.url = root, str(root)
        # Separate from what a capture keeps in staging, which a copy must not remove.
        self._drafts = root / STAGING / "copies"

    def size(self, name: str) -> int | None:
        """Size of a regular file in bytes."""
        return files.size_inside(self.root, name)

    def read(self, name: str, start: int, stop: int) -> bytes:
        """Bytes `start` to `stop`; a shorter file is damaged."""
        with files.open_inside(self.root, name) as handle:
            data = files.read_at(handle, start, stop - start)
        if len(data) != stop - start:
            raise CorruptError(f"{self.url}/{name}: the file ends before byte {stop:,}")
        return data

    def read_small(self, name: str, limit: int) -> bytes | None:
        """A whole file."""
        return read_sized(self, name, limit)

    def write(self, name: str, data: bytes) -> None:
        """Write a draft, sync it, rename it, sync the folder."""
        files.size_inside(self.root, name)  # refuses a path through links
        with _retry_if_swept(), self._unchanged_on_failure():
            files.replace_file(self.root / name, data, self._drafts)

    def create(self, name: str, data: bytes) -> bool:
        """Like `write` with a hard link in place of the rename: one of all racing callers wins."""
        if files.size_inside(self.root, name) is not None:
            return False
        with _retry_if_swept(), self._unchanged_on_failure():
            created = files.create_exclusive(self.root / name, data, self._drafts)
        if not created:
            self._remove_empty_drafts()
        return created

    def sha256(self, name: str) -> str | None:
        """None: a file system keeps no digest."""
        return None

    def flush(self) -> None:
        """Remove drafts of interrupted copies."""
        files.remove_tree(self._drafts)
        self._remove_empty_drafts()

    @contextmanager
    def _unchanged_on_failure(self) -> Iterator[None]:
        """Leave no empty folder of drafts behind a write that failed."""
        try:
            yield
        except BaseException:
            self._remove_empty_drafts()
            raise

    def _remove_empty_drafts(self) -> None:
        for folder in (self._drafts, self.root / STAGING):
            with suppress(OSError):  # it holds drafts of others, or does not exist
                folder.rmdir()

    def children(self) -> list[str]:
        """Names of files and folders directly inside."""
        with files.reading(self.url):
            if not self.root.is_dir():
                return []
            found = list(self.root.iterdir())
            return sorted(f"{entry.name}/" if entry.is_dir() else entry.name for entry in found)

    def inside(self, name: str) -> "DirectoryStorage":
        """The storage of a subfolder."""
        return DirectoryStorage(self.root / name)


@contextmanager
def _retry_if_swept() -> Iterator[None]:
    """Raise TransientError if a concurrent copy finished and removed our draft."""
    try:
        yield
    except FileNotFoundError:
        raise TransientError("another copy into the same directory removed the draft") from None
