"""`caskd` commands at the same time, each in its own process, which ends with this one.

A child gets a pipe as its input. When the parent is gone, even by `kill -9`, the pipe ends, and the
child sends itself SIGTERM: a training run then saves a checkpoint first.
"""

import os
import selectors
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import IO

from caskd.store.io import tell

_SECONDS_BETWEEN_LOOKS = 1.0

Child = subprocess.Popen[bytes]


def run_together(
    command_lines: Sequence[Sequence[str]], more: Mapping[str, str], watch: Callable[[], None]
) -> int:
    """Run `caskd WORDS` for each of these; what one prints appears when it ends.

    Args:
        command_lines: words of each.
        more: variables of the environment besides those of this process.
        watch: called about once a second.

    Returns:
        0, or the exit code of the first that failed, which ends the others; of a signal 128 + its
        number.
    """
    with ExitStack() as stack:
        printed = {stack.enter_context(_start(words, more)): bytearray() for words in command_lines}
        try:
            return _wait(printed, watch)
        except BaseException:
            _stop(printed)
            _wait(printed, lambda: None)
            raise


def _start(words: Sequence[str], more: Mapping[str, str]) -> Child:
    return subprocess.Popen(
        [sys.executable, "-c", f"from {__name__} import child_main; child_main()", *words],
        env={**os.environ, **more}, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, process_group=0,
    )  # fmt: skip


def _stop(children: Iterable[Child]) -> None:
    for child in children:
        _pipe(child.stdin).close()


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe


def _wait(printed: dict[Child, bytearray], watch: Callable[[], None]) -> int:
    """Wait until all end, and empty `printed`; return the first exit code that is not 0."""
    failed = 0
    with selectors.DefaultSelector() as selector:
        for child in printed:
            selector.register(_pipe(child.stdout), selectors.EVENT_READ, child)
        while printed:
            for key, _ in selector.select(_SECONDS_BETWEEN_LOOKS):
                data = os.read(key.fd, 1 << 16)
                if data:
                    printed[key.data] += data
                    continue
                selector.unregister(key.fileobj)
                tell(bytes(printed.pop(key.data)).decode(errors="replace").rstrip("\n"))
                if key.data.wait() and not failed:
                    failed = key.data.returncode
                    _stop(printed)
            watch()
    return failed if failed >= 0 else 128 - failed


def child_main() -> None:
    """What a child runs: the command line in `sys.argv`."""
    from caskd.cli.main import main

    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.exit(main())


def _end_with_parent() -> None:
    while os.read(0, 1):  # sys.stdin has a lock, which would be held when the interpreter ends
        pass
    os.kill(os.getpid(), signal.SIGTERM)
