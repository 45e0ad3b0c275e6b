"""An iterator that runs in a thread, a few items ahead of whoever takes them."""

import queue
import threading
import time
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

from caskd.store.errors import StoreError

AHEAD = 2
PATIENCE = 900.0
"""Seconds without an item after which the iterator counts as hung; a remote store's own retries end
long before."""

_GRACE = 10.0  # seconds for the item in hand; the thread is a daemon and ends with the process

T = TypeVar("T")


class StalledError(StoreError):
    """A reader gives nothing any more."""

    exit_code = 1


class ReadAhead(Generic[T]):
    """Runs an iterator in a thread, a few items ahead.

    An exception of the iterator is raised again where the item is asked for. `seconds_waited`
    counts the time that the caller spent waiting. Close it, or use it in a `with`.

    Args:
        items: the iterator.
        source: what it reads, for the error if it hangs.
        ahead: items kept ready.
        patience: seconds to wait for one item.
    """

    def __init__(
        self, items: Iterator[T], source: str, ahead: int = AHEAD, patience: float = PATIENCE
    ) -> None:
        self.seconds_waited = 0.0
        self._items, self._source, self._patience = items, source, patience
        self._num_given = 0
        self._queue: queue.Queue[tuple[str, Any]] = queue.Queue(maxsize=ahead)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="caskd-reader", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[T]:
        """The items.

        Raises:
            StalledError: the next one does not come.
        """
        while True:
            started = time.perf_counter()
            kind, value = self._next()
            self.seconds_waited += time.perf_counter() - started
            if kind == "end":
                return
            if kind == "error":
                raise value
            self._num_given += 1
            yield value

    def _next(self) -> tuple[str, Any]:
        try:
            return self._queue.get(timeout=self._patience)
        except queue.Empty:
            self._stop.set()
            raise StalledError(
                f"{self._source}: the reader gave nothing for {self._patience:g} seconds, after "
                f"{self._num_given:,} batches of this run. Look at the disk or the network that it "
                "reads from, and start again with --resume."
            ) from None

    def __enter__(self) -> "ReadAhead[T]":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the thread after the item that it is reading; one that hangs is left behind."""
        self._stop.set()
        self._thread.join(_GRACE)

    def _run(self) -> None:
        try:
            for item in self._items:
                if not self._put("item", item):
                    return
            self._put("end", None)
        except BaseException as error:  # handed to the caller, whatever it is
            self._put("error", error)

    def _put(self, kind: str, value: Any) -> bool:
        while not self._stop.is_set():
            try:
                self._queue.put((kind, value), timeout=0.1)
            except queue.Full:
                continue
            return True
        return False
