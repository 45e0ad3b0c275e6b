"""Stop on a signal: the first drops the current batch, the second ends the process."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from caskd.store.io import first_signal

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Stopped(KeyboardInterrupt):
    """The first signal, raised in the main thread wherever it is."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class StopSignals:
    """The signal received, if any."""

    number: int | None = None

    def check(self) -> None:
        """Raise `Stopped` again: Python drops an exception that is raised inside a destructor."""
        if self.number is not None:
            raise Stopped(self.number)


@contextmanager
def stop_signals() -> Iterator[StopSignals]:
    """Turn the first of `SIGNALS` into `Stopped`; the second has its default effect.

    `Stopped` is raised at once, not after the current batch, which on a CPU may take longer than
    the grace period. Rows of an unfinished shard are lost either way; commits run in their own
    thread.
    """
    stop = StopSignals()

    def raise_stopped(number: int) -> None:
        stop.number = number
        stopped = Stopped(number)
        note = "finishing the shard that is being written; a second signal ends at once"
        with suppress(OSError):  # nobody may read it any more
            os.write(2, f"{stopped}: {note}\n".encode())
        raise stopped

    with first_signal(SIGNALS, raise_stopped):
        yield stop
