"""Asking again: a bounded number of times, with random pauses that grow."""

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from caskd.store.errors import StoreError

T = TypeVar("T")


class TransientError(Exception):
    """No answer, or one that may be another next time; the text never holds a server's words."""


@dataclass(frozen=True)
class RetryPolicy:
    """How often a request is tried, and how long the pauses are.

    The pause before attempt n + 1 is random between 0 and `first_pause` x 2**n seconds, at most
    `longest_pause`: clients that failed together do not come back together.
    """

    attempts: int = 8
    first_pause: float = 0.25
    longest_pause: float = 15.0

    def pauses(self, rng: random.Random) -> Iterator[float]:
        """Seconds to wait between the attempts, one fewer than there are attempts."""
        for attempt in range(self.attempts - 1):
            yield rng.uniform(0, min(self.longest_pause, self.first_pause * 2**attempt))


def retry(call: Callable[[], T], where: str, policy: RetryPolicy) -> T:
    """Call until it does not raise TransientError.

    Raises:
        StoreError: every attempt failed; names `where` and the last reason.
    """
    for pause in policy.pauses(random.Random()):
        try:
            return call()
        except TransientError:
            time.sleep(pause)
    try:
        return call()
    except TransientError as error:
        raise StoreError(
            f"{where}: {error}, {policy.attempts} times in a row. "
            "Run the same command again later: it goes on where it stopped."
        ) from None
