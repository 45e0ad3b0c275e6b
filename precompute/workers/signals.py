"""Ending on SIGTERM or SIGINT: the first drops the work in hand, the second ends the process."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

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
    if threading.current_thread() is not threading.main_thread():
        yield stop  # signals are the main thread's
        return

    def on_signal(number: int, frame: FrameType | None) -> None:
        stop.number = number
        for each in before:
            signal.signal(each, signal.SIG_DFL)
        stopped = Stopped(number)
        os.write(2, f"{stopped}: finishing what is being written; again ends at once\n".encode())
        raise stopped

    # What a shell or nohup has put off for a job in the background stays so.
    heard = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.getsignal(number) for number in heard}
    for number in heard:
        signal.signal(number, on_signal)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
