"""Ending on SIGTERM or SIGINT: the first drops the work in hand, the second ends the process."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from caskd.store.io import first_signal

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(KeyboardInterrupt):
    """The first signal, raised wherever the main thread is."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class StopSignals:
    """Whether a signal came."""

    number: int | None = None

    def check(self) -> None:
        """Raise again what may have been swallowed: Python drops what is raised in a destructor."""
        if self.number is not None:
            raise Stopped(self.number)


@contextmanager
def stop_signals() -> Iterator[StopSignals]:
    """Turn the first SIGTERM or SIGINT into `Stopped`; the second has the system's own effect.

    Raised at once and not after the batch in hand, which on a CPU may take longer than the grace
    period: the rows of an unfinished shard are lost either way, and commits have their own thread.
    """
    stop = StopSignals()

    def raise_stopped(number: int) -> None:
        stop.number = number
        stopped = Stopped(number)
        os.write(2, f"{stopped}: finishing what is being written; again ends at once\n".encode())
        raise stopped

    with first_signal(SIGNALS, raise_stopped):
        yield stop
