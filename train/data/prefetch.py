"""Run an iterator in a thread, a few items ahead of its consumer."""

import queue
import threading
import time
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

from caskd.store.errors import StoreError

AHEAD = 2
TIMEOUT = 900.0
"""Seconds without an item after which the iterator counts as hung. The retries of a remote store
end long before."""

_CLOSE_TIMEOUT = 10.0
"""Seconds to wait for the current item at close; the thread is a daemon and ends with the process.
"""

T = TypeVar("T")


class StalledError(StoreError):
    """The reader produced no batch within the timeout."""

    exit_code = 1


class Prefetcher(Generic[T]):
    """Runs an iterator in a thread, a few items ahead.

    An exception of the iterator is raised again in the consumer. `seconds_waited` is the time that
    the consumer spent waiting. Close it, or use it in a `with`.

    Args:
        items: the iterator.
        source: name of the stores that it reads, for the error if it hangs.
        ahead: number of items to keep ready.
        timeout: seconds to wait for one item.
    """

    def __init__(
        self, items: Iterator[T], source: str, ahead: int = AHEAD, timeout: float = TIMEOUT
    ) -> None:
        self.seconds_waited = 0.0
        self._items, self._source, self._timeout = items, source, timeout
        self._num_taken = 0
        self._queue: queue.Queue[tuple[str, Any]] = queue.Queue(maxsize=ahead)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="caskd-reader", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[T]:
        """The items.

        Raises:
            StalledError: the next item did not arrive within the timeout.
        """
        while True:
            started = time.perf_counter()
            kind, value = self._next()
            self.seconds_waited += time.perf_counter() - started
            if kind == "end":
                return
            if kind == "error":
                raise value
            self._num_taken += 1
            yield value

    def _next(self) -> tuple[str, Any]:
        try:
            return self._queue.get(timeout=self._timeout)
        except queue.Empty:
            self._stop.set()
            raise StalledError(
                f"{self._source}: no batch arrived for {self._timeout:g} s ({self._num_taken:,} "
                "batches read so far); check the disk or network of the store, then run the same "
                "command with --resume"
            ) from None

    def __enter__(self) -> "Prefetcher[T]":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the thread after its current item. A hung thread is left behind."""
        self._stop.set()
        self._thread.join(_CLOSE_TIMEOUT)

    def _run(self) -> None:
        try:
            for item in self._items:
                if not self._put("item", item):
                    return
            self._put("end", None)
        except BaseException as error:  # passed on to the consumer, whatever it is
            self._put("error", error)

    def _put(self, kind: str, value: Any) -> bool:
        while not self._stop.is_set():
            try:
                self._queue.put((kind, value), timeout=0.1)
            except queue.Full:
                continue
            return True
        return False
