"""One progress bar over the whole demo, at the bottom of the terminal, below all output."""

import shutil
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from io import TextIOBase
from typing import TextIO

from caskd.store.io import SECONDS_BETWEEN_LINES, duration_text, progress_to, tell

_WIDTH = 20
_ERASE = "\r\x1b[2K"
_SECONDS_BETWEEN_DRAWS = 0.1
_MEASURING = ("capture", "train", "predict")
"""Labels of the tasks whose progress is that of their stage."""


class Forecast:
    """How much of the demo is done, and how long the rest takes.

    A stage that reports its progress also measures how fast this machine is. A stage that an
    earlier, stopped demo finished counts as done, and measures nothing.

    Args:
        expected: seconds of each stage on the machine that they were measured on, in order.
    """

    def __init__(self, expected: Mapping[str, float]) -> None:
        self._expected = expected
        self._finished = self._now_done = 0.0
        self._stage = next(iter(expected))
        # Expected seconds of measured work, and what it took. It begins as fast as expected.
        self._worth = self._took = 10.0
        self._last: tuple[float, float] | None = None

    def begin(self, stage: str) -> None:
        """The stages before `stage` are done."""
        names = list(self._expected)
        self._finished = sum(self._expected[name] for name in names[: names.index(stage)])
        self._stage, self._now_done, self._last = stage, 0.0, None

    def report(self, fraction: float, clock: float) -> None:
        """That much of the stage is done at this reading of a clock, in seconds."""
        done = min(fraction, 1.0) * self._expected[self._stage]
        if self._last is not None:
            before, when = self._last
            self._worth += done - before
            self._took += clock - when
        self._now_done, self._last = done, (done, clock)

    @property
    def fraction(self) -> float:
        """Finished share of the demo."""
        return (self._finished + self._now_done) / sum(self._expected.values())

    @property
    def seconds_left(self) -> float:
        """Expected seconds of the rest, at the speed measured so far."""
        rest = sum(self._expected.values()) * (1 - self.fraction)
        return rest * self._took / self._worth


class _Above(TextIOBase):
    """A stream of the terminal whose text appears above the bar."""

    def __init__(self, stream: TextIO, bar: "DemoBar") -> None:
        self._stream, self._bar = stream, bar

    def write(self, text: str) -> int:
        if text:
            self._bar.erase()
            self._stream.write(text)
            self._stream.flush()
            self._bar.in_a_line = not text.endswith("\n")
            self._bar.draw()
        return len(text)

    def flush(self) -> None:
        self._stream.flush()

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._stream.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding


class DemoBar:
    """The bar. Without a terminal it is a line a minute. Use it in a `with`.

    Args:
        expected: seconds of each stage, in order.

    Attributes:
        in_a_line: whether the last output has no end of line yet.
    """

    def __init__(self, expected: Mapping[str, float]) -> None:
        self._forecast = Forecast(expected)
        self._stage, self._note = next(iter(expected)), ""
        self._terminal: TextIO | None = None
        self._last = time.monotonic()
        self._drawn = False
        self.in_a_line = False
        self._open = ExitStack()

    def __enter__(self) -> "DemoBar":
        self._open.enter_context(progress_to(self.report))
        if sys.stderr.isatty():
            self._terminal = sys.stderr
            self._open.enter_context(redirect_stderr(_Above(sys.stderr, self)))
            if sys.stdout.isatty():
                self._open.enter_context(redirect_stdout(_Above(sys.stdout, self)))
        return self

    def __exit__(self, *error: object) -> None:
        self.erase()
        self._open.close()

    def begin(self, stage: str) -> None:
        """Begin a stage."""
        self._forecast.begin(stage)
        self._stage, self._note = stage, ""
        self.draw()

    def report(self, label: str, fraction: float, note: str = "") -> None:
        """Show the progress of a task, if it is that of its stage."""
        if label not in _MEASURING:
            return
        now = time.monotonic()
        self._forecast.report(fraction, now)
        self._note = note
        if self._terminal is not None:
            if now - self._last >= _SECONDS_BETWEEN_DRAWS:
                self._last = now
                self.draw()
        elif now - self._last >= SECONDS_BETWEEN_LINES:
            self._last = now
            tell(f"demo: {self._text()}", file=sys.stderr, flush=True)

    def _text(self) -> str:
        left = duration_text(self._forecast.seconds_left)
        note = f"  {self._note}" if self._note else ""
        return f"{self._forecast.fraction:.0%}, {left} left: {self._stage}{note}"

    def draw(self) -> None:
        """Draw the bar below the output, unless a line of it has no end yet."""
        if self._terminal is None or self.in_a_line:
            return
        full, empty = "\u2501\u2500" if "utf" in self._terminal.encoding.lower() else "#-"
        done = round(_WIDTH * self._forecast.fraction)
        line = f"demo {full * done}{empty * (_WIDTH - done)} {self._text()}"
        self._terminal.write(_ERASE + line[: shutil.get_terminal_size().columns - 1])
        self._terminal.flush()
        self._drawn = True

    def erase(self) -> None:
        """Leave the bar's line empty."""
        if self._terminal is not None and self._drawn:
            self._terminal.write(_ERASE)
            self._terminal.flush()
            self._drawn = False
