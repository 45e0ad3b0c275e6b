"""The shard files that this process has open, of all stores together, within its limit."""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress

from caskd.store.format import ShardFile
from caskd.store.io import descriptors

MOST = 256
_SHARE = 4  # of the process's limit: the rest is for connections, logs and other libraries

Key = tuple[int, str]
"""A number of the store, unique in this process, and the name of the file."""


class OpenFiles:
    """Keeps the files open that were used last.

    A file is closed when it was evicted and its last reader is done, so that no thread loses the
    file that it reads.
    """

    def __init__(self) -> None:
        self._files: OrderedDict[Key, ShardFile] = OrderedDict()
        self._lock = threading.RLock()  # the collector may drop a store at any time

    def __contains__(self, key: Key) -> bool:
        return key in self._files

    def __len__(self) -> int:
        return len(self._files)

    def get(self, key: Key, open_file: Callable[[], ShardFile]) -> ShardFile:
        """The open file of `key`, else that of `open_file`; the least recently used one may go."""
        with self._lock:
            found = self._files.get(key)
            if found is not None:
                self._files.move_to_end(key)
                return found
            with suppress(KeyError):
                while len(self._files) >= descriptors.share(MOST, _SHARE):
                    self._files.popitem(last=False)
        opened = open_file()
        with self._lock:
            self._files[key] = opened
        return opened

    def drop(self, key: Key) -> None:
        """Close a file, so that its next reader opens it again."""
        with self._lock:
            self._files.pop(key, None)

    def drop_store(self, number: int) -> None:
        """Close all files of a store."""
        with self._lock:
            for key in [key for key in self._files if key[0] == number]:
                self._files.pop(key, None)

    def clear(self) -> bool:
        """Close all files; returns whether there were any."""
        with self._lock:
            closed = bool(self._files)
            self._files.clear()
        return closed

    def after_fork(self) -> None:
        """In a forked process: another thread of the parent may have held the lock."""
        self._lock = threading.RLock()
        self._files.clear()


OPEN_FILES = OpenFiles()
os.register_at_fork(after_in_child=OPEN_FILES.after_fork)
