"""An iterator that runs in a thread, a few items ahead of whoever takes them."""

import queue
import threading
import time
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

AHEAD = 2

T = TypeVar("T")


class ReadAhead(Generic[T]):
    """Runs an iterator in a thread, a few items ahead.

    An exception of the iterator is raised again where the item is asked for. `seconds_waited`
    counts the time that the caller spent waiting. Close it, or use it in a `with`.
    """

    def __init__(self, items: Iterator[T], ahead: int = AHEAD) -> None:
        self.seconds_waited = 0.0
        self._items = items
        self._queue: queue.Queue[tuple[str, Any]] = queue.Queue(maxsize=ahead)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="caskd-reader", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[T]:
        while True:
            started = time.perf_counter()
            kind, value = self._queue.get()
            self.seconds_waited += time.perf_counter() - started
            if kind == "end":
                return
            if kind == "error":
                raise value
            yield value

    def __enter__(self) -> "ReadAhead[T]":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the thread after the item that it is reading."""
        self._stop.set()
        self._thread.join()

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
