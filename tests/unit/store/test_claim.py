"""An output folder has one writer at a time."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from caskd.store.errors import UsageError
from caskd.store.io import CLAIM, claimed

HOLD = """
import sys
from pathlib import Path
from caskd.store.io import claimed
with claimed(Path(sys.argv[1]), "--out"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds tmp_path / 'out'."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "out")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_the_second_is_refused_and_changes_nothing(tmp_path, holder):
    out = tmp_path / "out"
    (out / "metrics.jsonl").write_text("{}\n")
    with (
        pytest.raises(UsageError, match=r"--out .*in use by another caskd process"),
        claimed(out, "--out"),
    ):
        pytest.fail("two processes hold one folder")
    assert sorted(path.name for path in out.iterdir()) == [CLAIM, "metrics.jsonl"]


def test_a_killed_process_leaves_a_dead_claim(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / "out" / CLAIM).exists()
    with claimed(tmp_path / "out", "--out"):
        pass
    assert not (tmp_path / "out" / CLAIM).exists()


def test_a_new_folder_without_content_goes_again(tmp_path):
    with claimed(tmp_path / "a" / "out", "--out"):
        assert (tmp_path / "a" / "out" / CLAIM).exists()
    assert not (tmp_path / "a" / "out").exists()
    (tmp_path / "old").mkdir()
    with claimed(tmp_path / "old", "--out"):
        pass
    assert (tmp_path / "old").is_dir()


def test_an_error_inside_releases(tmp_path):
    with pytest.raises(KeyError), claimed(tmp_path / "out", "--out"):
        raise KeyError
    with claimed(tmp_path / "out", "--out"):
        pass


def test_without_locks_an_existing_claim_is_refused_and_named(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", no_locks)
    out = tmp_path / "out"
    with claimed(out, "--out"):
        with (
            pytest.raises(UsageError, match=rf"no locks.*remove {out / CLAIM}"),
            claimed(out, "--out"),
        ):
            pytest.fail("two hold one folder")
        assert (out / CLAIM).exists()
    with claimed(out, "--out"):
        pass


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UsageError, match=r"--out .*cannot be written"),
        claimed(tmp_path / "file" / "out", "--out"),
    ):
        pytest.fail("no folder")
    assert Path(tmp_path / "file").read_text() == ""


def test_the_claim_of_the_next_process_stays(tmp_path):
    """A holder may replace the folder by a finished one; the claim there is not its own."""
    out = tmp_path / "out"
    with claimed(out, "--out"):
        (out / CLAIM).unlink()
        (out / CLAIM).write_bytes(b"")
    assert (out / CLAIM).exists()
