"""Files and JSON of strangers: bounded, and refused with the problem."""

import errno
import os
from pathlib import Path

import pytest

from caskd.store.io import (
    StrangeFileError,
    check_room,
    parse_json,
    read_json_object,
    read_regular,
    system_failure,
    tell,
)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"[" * 70 + b"]" * 70, "nested deeper"),
        (b"[" * 200_000, "nested deeper"),
        (b"1" + b"0" * 400, "401 digits"),
        (b"1" * 5_000, "5,000 digits"),
        (b"1e999", "too large"),
        (b"[NaN]", "NaN"),
        (b"[-Infinity]", "-Infinity"),
        (b'{"a": 1, "a": 2}', "'a' stands twice"),
        (b'{"a": "\xff"}', "not UTF-8"),
        (b"", "not valid JSON"),
        (b"{} x", "not valid JSON"),
    ],
)
def test_json_that_is_refused(text: bytes, problem: str) -> None:
    with pytest.raises(StrangeFileError, match=problem) as caught:
        parse_json(text)
    assert "\n" not in str(caught.value)


def test_json_that_is_accepted() -> None:
    assert parse_json('\ufeff{"a": [1, -2.5, null]}'.encode()) == {"a": [1, -2.5, None]}
    assert parse_json("[Infinity]", constants=True) == [float("inf")]


def test_only_regular_files_of_bounded_size_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # reading it would wait for ever
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(StrangeFileError, match="not a regular file"):
            read_regular(path)
    (tmp_path / "large").write_bytes(b"12345")
    with pytest.raises(StrangeFileError, match="more than 4"):
        read_regular(tmp_path / "large", 4)
    (tmp_path / "list").write_text("[]")
    with pytest.raises(StrangeFileError, match="not an object"):
        read_json_object(tmp_path / "list")


def test_a_failing_disk_is_one_line() -> None:
    full = system_failure(OSError(errno.ENOSPC, "full", "/x/y"))
    assert "/x/y" in str(full)
    assert "free disk space" in str(full)
    assert "--store" not in str(full)
    rust = system_failure(RuntimeError("I/O error: No space left on device (os error 28)"))
    assert "free disk space" in str(rust)
    assert system_failure(FileNotFoundError(errno.ENOENT, "gone")) is None
    assert system_failure(ValueError("no")) is None


def test_room_is_checked_before_work(tmp_path: Path) -> None:
    check_room(tmp_path / "new" / "file", "--out", 1)
    with pytest.raises(ValueError, match=r"--out .* free bytes; expected at least"):
        check_room(tmp_path / "new" / "file", "--out", 1 << 60)


def test_what_is_told_drives_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    tell("a\x1b[2K\u202eb\nsecond")
    assert capsys.readouterr().out == "a\\x1b[2K\\x202eb\nsecond\n"
