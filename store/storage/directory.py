"""A store in a directory of this machine or of a network file system."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from caskd.store.errors import CorruptError
from caskd.store.format import STAGING
from caskd.store.io import files
from caskd.store.storage.base import TransientError, read_sized


class DirectoryStorage:
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

    def inside(self, name: str) -> "DirectoryStorage":
        """A folder of this directory."""
        return DirectoryStorage(self.root / name)


@contextmanager
def _swept() -> Iterator[None]:
    """Another copy into the same directory may have finished and swept our draft."""
    try:
        yield
    except FileNotFoundError:
        raise TransientError("the draft was swept by another copy") from None
