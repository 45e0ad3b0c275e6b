"""Signals that stop a process cleanly the first time and kill it the second time."""

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from stat import S_ISCHR


@contextmanager
def first_signal(numbers: Sequence[signal.Signals], act: Callable[[int], None]) -> Iterator[None]:
    """Call `act` with the number of the first of these signals; a second ends the process.

    Signals that the parent process ignores (nohup, a background job) stay ignored. Outside the main
    thread this installs nothing, because Python runs signal handlers in the main thread only.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handled = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.getsignal(number) for number in handled}

    def on_signal(number: int, _frame: object) -> None:
        for other in handled:
            signal.signal(other, signal.SIG_DFL)
        if number == signal.SIGHUP:
            _leave_terminal()
        act(number)

    for number in handled:
        signal.signal(number, on_signal)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def _leave_terminal() -> None:
    """Discard what is printed from now on: writing to a closed terminal is an error."""
    for stream in (1, 2):
        with suppress(OSError):
            if S_ISCHR(os.fstat(stream).st_mode):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, stream)
                os.close(null)
