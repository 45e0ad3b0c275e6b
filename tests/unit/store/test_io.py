"""Text for people, signals and errors: the helpers that every room uses."""

import os
import signal
import threading
from collections.abc import Callable

import pytest

from caskd.store.errors import reason
from caskd.store.io import (
    bytes_text,
    duration_text,
    escape_control,
    escape_markdown,
    first_signal,
    strip_control,
    value_text,
)

HOSTILE = "a\x1b[2Jb\u202ec\n"


@pytest.mark.parametrize(
    ("safe", "expected"),
    [
        (strip_control, "a[2Jbc"),
        (escape_control, r"a\x1b[2Jb\x202ec\x0a"),
        (value_text, r"'a\x1b[2Jb\u202ec\n'"),
        (escape_markdown, r"a\\x1b\[2Jb\\x202ec\\x0a"),
    ],
)
def test_unsafe_text(safe: Callable[[str], str], expected: str) -> None:
    assert safe(HOSTILE) == expected
    assert safe(HOSTILE).isprintable()


@pytest.mark.parametrize("safe", [strip_control, escape_control, escape_markdown])
def test_ordinary_names_stay(safe: Callable[[str], str]) -> None:
    assert safe("org/flan-t5_8b v1.0 (step 10) é ✓") == "org/flan-t5_8b v1.0 (step 10) é ✓"


def test_values_in_errors_are_short() -> None:
    assert value_text("x" * 100) == "'" + "x" * 56 + "..."
    assert value_text({"a": 1}) == "dict"
    assert value_text(3) == "3"


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0.0 kB"),
        (1_500, "1.5 kB"),
        (999_000, "999.0 kB"),
        (1_000_000, "1.0 MB"),
        (12_340_000_000, "12.3 GB"),
        (5_600_000_000_000, "5.6 TB"),
    ],
)
def test_bytes(num_bytes: float, text: str) -> None:
    assert bytes_text(num_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (89, "89 s"), (90, "2 min"), (5_399, "90 min"), (5_400, "1.5 h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def test_a_reason_is_one_short_line() -> None:
    assert reason(ValueError("two\n  lines")) == "two lines"
    assert reason(ValueError("x" * 300)) == "x" * 200
    assert reason(ValueError("x" * 300), limit=5) == "xxxxx"
    assert reason(KeyError()) == "KeyError"


def test_the_first_signal_acts_and_the_second_is_the_systems() -> None:
    received: list[int] = []
    before = signal.getsignal(signal.SIGUSR1)
    with first_signal([signal.SIGUSR1, signal.SIGUSR2], received.append):
        os.kill(os.getpid(), signal.SIGUSR1)
        assert received == [signal.SIGUSR1]
        for number in (signal.SIGUSR1, signal.SIGUSR2):
            assert signal.getsignal(number) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGUSR1) == before


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        with first_signal([signal.SIGUSR1], pytest.fail):
            os.kill(os.getpid(), signal.SIGUSR1)
            assert signal.getsignal(signal.SIGUSR1) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_thread_installs_no_handler() -> None:
    before, inside = signal.getsignal(signal.SIGUSR1), []

    def run() -> None:
        with first_signal([signal.SIGUSR1], pytest.fail):
            inside.append(signal.getsignal(signal.SIGUSR1))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert inside == [before]
