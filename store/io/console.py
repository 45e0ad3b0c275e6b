"""Progress of a long task: a bar with rate and ETA on a terminal, else one line a minute."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Protocol, TextIO

from caskd.store.io.printable import escape_control

SECONDS_BETWEEN_LINES = 60.0


def tell(text: str, *, file: TextIO | None = None, flush: bool = False) -> None:
    """Print lines whose names and values may come from a stranger: nothing drives the terminal.

    Args:
        text: one or more lines.
        file: standard output by default.
        flush: write at once.
    """
    print("\n".join(map(escape_control, text.split("\n"))), file=file, flush=flush)


class Progress(Protocol):
    """Receiver of a long task's progress."""

    def advance(self, amount: int = 1, note: str = "") -> None:
        """Report `amount` more finished units; `note` replaces the text beside the bar."""


def rate_text(rate: float, unit: str) -> str:
    """A rate with its unit: 7.9 steps/s, and of slow work 12.3 s a step."""
    if 0 < rate < 1:
        return f"{1 / rate:,.1f} s a {unit.removesuffix('s')}"
    return f"{rate:,.1f} {unit}/s"


Report = Callable[[str, float, str], None]
_report: ContextVar[Report | None] = ContextVar("report", default=None)


@contextmanager
def progress_to(report: Report) -> Iterator[None]:
    """Show no bar of a task: call `report(label, finished fraction, note)` at each advance."""
    token = _report.set(report)
    try:
        yield
    finally:
        _report.reset(token)


class _Reported:
    def __init__(self, report: Report, label: str, total: int, done: int) -> None:
        self._report, self._label, self._total, self._done = report, label, total, done
        self.advance(0)

    def advance(self, amount: int = 1, note: str = "") -> None:
        self._done += amount
        self._report(self._label, self._done / max(self._total, 1), note)


class _Lines:
    def __init__(self, label: str, total: int, unit: str, done: int) -> None:
        self.label, self.total, self.unit, self.done = label, total, unit, done
        self.first_done = done
        self.started = self.last_line = time.monotonic()

    def advance(self, amount: int = 1, note: str = "") -> None:
        self.done += amount
        now = time.monotonic()
        if now - self.last_line >= SECONDS_BETWEEN_LINES:
            self.last_line = now
            self.line(note)

    def line(self, note: str = "") -> None:
        elapsed = max(time.monotonic() - self.started, 1e-9)
        rate = (self.done - self.first_done) / elapsed
        left = f", {(self.total - self.done) / rate:.0f} s left" if rate > 0 else ""
        text = f"{self.label}: {self.done:,}/{self.total:,} {self.unit}"
        with suppress(OSError):  # a full log must not end the work
            tell(
                f"{text}, {rate_text(rate, self.unit)}{left}{'  ' + note if note else ''}",
                file=sys.stderr,
                flush=True,
            )


class _Bar:
    def __init__(self, label: str, total: int, unit: str, done: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        rate = TextColumn("{task.fields[rate]}")
        self.bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit),
            rate,
            TextColumn("ETA"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=Console(stderr=True),
        )
        self.task = self.bar.add_task(label, total=total, completed=done, note="", rate="")
        self.unit = unit
        self.bar.start()

    def advance(self, amount: int = 1, note: str = "") -> None:
        speed = self.bar.tasks[0].speed
        rate = rate_text(speed, self.unit) if speed else ""
        self.bar.update(self.task, advance=amount, note=note, rate=rate)


@contextmanager
def progress(
    label: str, total: int, unit: str, *, done: int = 0, quiet: bool = False
) -> Iterator[Progress]:
    """Show the progress of `total` units, `done` of them finished before; `quiet` shows nothing."""
    report = _report.get()
    if report is not None and not quiet:
        yield _Reported(report, label, total, done)
        return
    if not quiet and sys.stderr.isatty():
        bar = _Bar(label, total, unit, done)
        try:
            yield bar
        finally:
            bar.bar.stop()
        return
    lines = _Lines(label, total, unit, done)
    if quiet:
        lines.last_line = float("inf")
    yield lines
