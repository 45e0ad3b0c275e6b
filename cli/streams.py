"""The process's standard streams: closed, full, or with a reader that left."""

import os
import sys
from contextlib import suppress

BROKEN_PIPE = 141  # 128 + SIGPIPE, as shells report it
NOT_WRITTEN = 2
_NAMES = ("stdin", "stdout", "stderr")


def open_missing() -> None:
    """Open closed standard streams on /dev/null.

    Otherwise the first file that the command opens gets the number of a closed stream, and whatever
    a library prints goes into that file.
    """
    for number, name in enumerate(_NAMES):
        try:
            os.fstat(number)
        except OSError:
            _discard(number)
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))


def complain(line: str) -> None:
    """Print a line on stderr, if anybody can read it, behind the output so far."""
    with suppress(OSError):
        sys.stdout.flush()
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        _discard(2)


def flushed(code: int) -> int:
    """Write what is left of the output.

    Returns:
        `code`; if it is 0 and the output could not be written, the exit code that reports it.
    """
    failure = output_failure()
    with suppress(OSError):
        sys.stderr.flush()
        return code or failure
    _discard(2)
    return code or failure


def output_failure(probe: str = "") -> int:
    """0 if the output, and `probe` after it, can be written; else say why, discard it, and return
    an exit code."""
    try:
        print(end=probe, flush=True)
    except BrokenPipeError:  # the reader left (`| head`)
        _discard(1)
        return BROKEN_PIPE
    except OSError as error:
        _discard(1)
        complain(
            f"caskd: the output cannot be written ({error.strerror}); expected a stdout with room; "
            "redirect it elsewhere and run the command again"
        )
        return NOT_WRITTEN
    return 0


def _discard(number: int) -> None:
    """Let a stream write to /dev/null, so that Python does not report it once more at exit."""
    null = os.open(os.devnull, os.O_RDWR)
    if null != number:
        os.dup2(null, number)
        os.close(null)
