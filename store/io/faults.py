"""Fault points: named steps at which tests inject a kill, a delay or an OSError.

`CASKD_FAULT=point:number:action` runs `action` on the `number`-th arrival at `point` (`*`: any):

    kill | stop        SIGKILL or SIGSTOP this process
    delay              sleep 0.05 seconds
    ENOSPC, EIO, ...   raise OSError with this error number

A `+` after the number repeats the action on every later arrival. Without the variable a point costs
one comparison. `Fault.reached` is False for a fault whose point was never reached.
"""

import errno
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

from caskd.store.errors import UsageError

VARIABLE = "CASKD_FAULT"
DELAY_SECONDS = 0.05

_PROTOCOL = ("staged", "published", "won", "lost", "moving", "moved", "finished")
PRIMITIVES = (
    "file.write",
    "file.fsync",
    "file.rename",
    "file.link",
    "file.unlink",
    "directory.make",
    "directory.fsync",
    "tree.remove",
)
POINTS = (
    *PRIMITIVES,
    *(f"{kind}.{step}" for kind in ("plan", "shard") for step in _PROTOCOL),
    "seal.checked",
    "seal.digests",
    "seal.card",
    "seal.sealed",
)

Hook = Callable[..., None]
hook: Hook | None = None


def point(name: str, *paths: Path) -> None:
    """Pass a fault point; `paths` are the files and folders about to change."""
    if hook is not None:
        hook(name, *paths)


class Fault:
    """One configured fault.

    Raises:
        UsageError: the text is not `point:number:action`, or the point is unknown.
    """

    def __init__(self, text: str) -> None:
        match = re.fullmatch(r"([a-z.]+|\*):(\d+)(\+?):(kill|stop|delay|E[A-Z0-9]+)", text)
        if match is None or match[1] not in (*POINTS, "*"):
            raise UsageError(
                f"{VARIABLE}={text!r}: expected point:number:action, with kill, stop, delay or an "
                "error such as ENOSPC or EIO as action; set one of the points of store/io/faults.py"
            )
        self.point, self.action = match[1], match[4]
        self.number, self.persists = int(match[2]), bool(match[3])
        self.count, self.reached = 0, False

    def __call__(self, name: str, *_paths: Path) -> None:
        """Count an arrival and act on the configured one."""
        if self.point not in (name, "*"):
            return
        self.count += 1
        if self.count == self.number or (self.persists and self.count > self.number):
            self.reached = True
            self._act()

    def _act(self) -> None:
        if self.action == "delay":
            time.sleep(DELAY_SECONDS)
        elif self.action in ("kill", "stop"):
            os.kill(os.getpid(), signal.SIGKILL if self.action == "kill" else signal.SIGSTOP)
        else:
            number = getattr(errno, self.action)
            raise OSError(number, os.strerror(number))


if VARIABLE in os.environ:
    hook = Fault(os.environ[VARIABLE])
