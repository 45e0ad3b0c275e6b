"""The folder of an open store: tells a store that was moved or replaced from a damaged one."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from caskd.store.errors import IdentityError, StoreError, UnreadableError
from caskd.store.format import SEAL, STORE_JSON
from caskd.store.io import files


class Location:
    """Remembers what store is at `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._head = _head(root)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Replace an error of the block by that of `check`, if the store has gone.

        Raises:
            UnreadableError: see `check`.
            IdentityError: see `check`.
        """
        try:
            yield
        except StoreError:
            self.check()
            raise

    def check(self) -> None:
        """Compare the folder with what it was.

        Raises:
            UnreadableError: it does not exist any more.
            IdentityError: it holds another store.
        """
        if not files.exists(self.root):
            raise UnreadableError(
                f"{self.root}: was moved or removed since this command opened it, which is not "
                "damage; expected the store there; move it back, or pass its new path, then run "
                "the same command again"
            )
        for name, before, now in zip((STORE_JSON, SEAL), self._head, _head(self.root), strict=True):
            if before is not None and now not in (None, before):
                raise IdentityError(replaced(self.root, name))


def replaced(where: Path | str, name: str) -> str:
    """The message that another store is at `where`; `name` is a file that differs."""
    return (
        f"{where}: another store than the one opened there before ({name} differs); expected one "
        "store at this place while it is read; run the command again to read the new store"
    )


def _head(root: Path) -> tuple[bytes | None, bytes | None]:
    """The content of store.json and of seal.json; None for one that cannot be read."""
    return _content(root, STORE_JSON), _content(root, SEAL)


def _content(root: Path, name: str) -> bytes | None:
    try:
        return files.read_small(root, name)
    except StoreError:
        return None
