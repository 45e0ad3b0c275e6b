"""Several servers of one model that share requests."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from typing import Generic, TypeVar

Server = TypeVar("Server")
Item = TypeVar("Item")
Result = TypeVar("Result")


class LeastBusy(Generic[Server]):
    """Servers of which each request takes the one with the fewest requests under way."""

    def __init__(self, servers: Sequence[Server]) -> None:
        self.servers = servers
        self._busy = [0] * len(servers)
        self._lock = threading.Lock()

    @contextmanager
    def pick(self) -> Iterator[Server]:
        """A server for one request, which is counted until the block ends."""
        with self._lock:
            number = self._busy.index(min(self._busy))
            self._busy[number] += 1
        try:
            yield self.servers[number]
        finally:
            with self._lock:
                self._busy[number] -= 1


def in_order(
    pool: Executor, work: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Iterator[Result]:
    """The results of `work` in the order of the items, at most `ahead` of them begun early."""
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
