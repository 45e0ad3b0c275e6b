"""Commands at the same time: their output in one piece, and their end with their parent's."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from caskd.cli.demo.own_process import run_together


@pytest.fixture
def unfinished(tmp_path: Path) -> Path:
    """A run that `caskd status --watch` watches for ever."""
    (tmp_path / "config.json").write_text(json.dumps({"config": {"steps": 10}}))
    return tmp_path


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _children(pid: int) -> list[int]:
    return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_the_first_failure_ends_the_others(
    unfinished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [["status", str(unfinished), "--watch"], ["status", str(unfinished / "none")]]
    assert run_together(lines, {}, lambda: None) == 2
    said = capsys.readouterr().out
    assert "none: is no training run" in said
    assert "stopped by SIGTERM" in said


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_an_interruption_ends_them(unfinished: Path) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    before = _children(os.getpid())
    with pytest.raises(KeyboardInterrupt):
        run_together([["status", str(unfinished), "--watch"]], {}, interrupt)
    assert _children(os.getpid()) == before


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_kill_9_of_the_parent_ends_them(unfinished: Path) -> None:
    words = ["status", str(unfinished), "--watch"]
    code = f"from caskd.cli.demo.own_process import run_together as r; r([{words}], {{}}, print)"
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    with parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        (child,) = _children(parent.pid)
        parent.kill()
    until = time.monotonic() + 60
    while _is_alive(child) and time.monotonic() < until:
        time.sleep(0.05)
    assert not _is_alive(child)
