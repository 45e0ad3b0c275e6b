"""Requests of a forked process: a fresh helper process makes them.

obstore's threads do not survive a fork, and one process cannot start them twice: any request of a
child whose parent used obstore would wait for ever. The helper ends when the child's end of the
socket closes.
"""

import itertools
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from multiprocessing import spawn
from multiprocessing.connection import Connection
from typing import Any

from caskd.store.errors import CaskdError
from caskd.store.io import descriptors
from caskd.store.storage.base import Storage, TransientError

NUM_THREADS = 64
_ENDED = "the helper process that makes the requests ended"

is_needed = False
"""Whether this process was forked from one that had imported obstore."""
_helper: "Helper | None" = None
_starting = threading.Lock()


def _after_fork() -> None:
    global is_needed, _helper, _starting
    is_needed = is_needed or "obstore" in sys.modules
    _helper, _starting = None, threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


class HelperStorage:
    """The storage at `url`, reached through the helper process."""

    def __init__(self, url: str) -> None:
        self.url = url

    def size(self, name: str) -> int | None:
        """As `Storage.size`."""
        found: int | None = _call(self.url, "size", name)
        return found

    def read(self, name: str, start: int, stop: int) -> bytes:
        """As `Storage.read`."""
        return bytes(_call(self.url, "read", name, start, stop))

    def read_small(self, name: str, limit: int) -> bytes | None:
        """As `Storage.read_small`."""
        found: bytes | None = _call(self.url, "read_small", name, limit)
        return found

    def write(self, name: str, data: bytes) -> None:
        """As `Storage.write`."""
        _call(self.url, "write", name, data)

    def create(self, name: str, data: bytes) -> bool:
        """As `Storage.create`."""
        return bool(_call(self.url, "create", name, data))

    def sha256(self, name: str) -> str | None:
        """None: an ETag is not a sha256."""
        return None

    def flush(self) -> None:
        """Nothing to do: every PUT is visible at once."""

    def children(self) -> list[str]:
        """As `Storage.children`."""
        return list(_call(self.url, "children"))

    def inside(self, name: str) -> "HelperStorage":
        """The storage of a longer prefix of the same bucket."""
        return HelperStorage(f"{self.url}/{name}")


def _call(url: str, method: str, *args: Any) -> Any:
    global _helper
    with _starting:
        if _helper is None or _helper.ended:
            _helper = Helper()
        helper = _helper
    return helper.call(url, method, *args)


class Helper:
    """This process's end: sends requests of any thread, and hands each its response."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        run = f"import sys; sys.path[:] = {sys.path!r}; "
        run += "from caskd.store.storage import open_storage, request_helper; "
        run += f"request_helper.serve({theirs.fileno()}, open_storage)"
        executable = os.fsdecode(spawn.get_executable())
        # Its own session: Ctrl-C ends this process, and the closed socket ends the helper.
        self._process = subprocess.Popen(
            [executable, "-c", run], pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        theirs.close()
        self._connection = Connection(ours.detach())
        self._sending, self._numbers = threading.Lock(), itertools.count()
        self._waiting: dict[int, Future[Any]] = {}
        self.ended = False
        threading.Thread(target=self._receive, name="caskd-helper", daemon=True).start()

    def call(self, url: str, method: str, *args: Any) -> Any:
        """The result of a method of the storage at `url`; its exceptions are raised here."""
        future: Future[Any] = Future()
        try:
            with self._sending:
                number = next(self._numbers)
                self._waiting[number] = future
                self._connection.send((number, url, method, args))
        except OSError:
            raise TransientError(_ENDED) from None
        if self.ended:  # it may have ended before the future was there
            raise TransientError(_ENDED)
        return future.result()

    def _receive(self) -> None:
        with suppress(EOFError, OSError):
            while True:
                number, error, value = self._connection.recv()
                future = self._waiting.pop(number)
                if error is None:
                    future.set_result(value)
                else:
                    future.set_exception(error)
        self.ended = True
        for number in [*self._waiting]:
            self._waiting.pop(number).set_exception(TransientError(_ENDED))


def serve(handle: int, open_storage: Callable[[str], Storage]) -> None:
    """Run the helper: make the requests that arrive at the socket `handle` until it closes."""
    connection, sending = Connection(handle), threading.Lock()
    storages: dict[str, Storage] = {}

    def respond(number: int, url: str, method: str, args: tuple[Any, ...]) -> None:
        error: Exception | None = None
        value = None
        try:
            if url not in storages:
                storages[url] = open_storage(url)
            value = getattr(storages[url], method)(*args)
        except (CaskdError, TransientError, FileNotFoundError) as raised:
            error = raised
        except Exception as raised:
            error = TransientError(f"request failed ({type(raised).__name__})")
        with suppress(OSError), sending:
            connection.send((number, error, value))

    with ThreadPoolExecutor(descriptors.share(NUM_THREADS, 8)) as pool, suppress(EOFError, OSError):
        while True:
            pool.submit(respond, *connection.recv())
