"""SIGTERM and SIGHUP end every command with their exit code; nothing is left half written."""

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from caskd.store.io import claimed

STOPPED = """
import os, signal, sys
from caskd.cli import main as cli
from pathlib import Path
from caskd.store.io import claimed

def command(_):
    with claimed(Path(sys.argv[1]), "--out"):
        os.kill(os.getpid(), int(sys.argv[2]))
        signal.pause()

real = cli.resolve
cli.resolve = lambda target: command if target.endswith(":evaluate") else real(target)
sys.exit(cli.main(["eval", "--small", "a.parquet", "--large", "b.parquet", "--out", sys.argv[1]]))
"""


@pytest.mark.parametrize(
    ("number", "existed"),
    [(signal.SIGTERM, False), (signal.SIGTERM, True), (signal.SIGHUP, False)],
)
def test_a_command_without_a_handler_of_its_own(
    tmp_path: Path, number: signal.Signals, existed: bool
) -> None:
    out = tmp_path / "out"
    if existed:
        out.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", STOPPED, str(out), str(int(number))],
        capture_output=True, text=True, timeout=120, check=False, env=dict(os.environ),
    )  # fmt: skip
    assert done.returncode == 128 + number, done.stderr
    assert done.stderr.startswith(f"caskd: stopped by {number.name}")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == ([out] if existed else [])
    with claimed(out, "--out"):
        pass


@pytest.mark.parametrize("code", ["import caskd.cli.main as m; m.main(['--version'])"])
def test_the_handler_goes_with_the_command(code: str) -> None:
    code += "; import signal; assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, capture_output=True)


def test_a_closed_terminal_does_not_break_what_is_left_to_do(tmp_path: Path) -> None:
    """After SIGHUP, printing to the terminal that is gone is an error of the system."""
    code = """
import os, signal, sys, time
from pathlib import Path
from caskd.store.io import first_signal
received = []
with first_signal([signal.SIGHUP], received.append):
    print("ready", flush=True)
    while not received:
        time.sleep(0.01)
    print("saving", flush=True)
    Path(sys.argv[1]).write_text("saved")
"""
    child, terminal = pty.fork()
    if not child:
        os.execv(sys.executable, [sys.executable, "-c", code, str(tmp_path / "file")])
    assert b"ready" in os.read(terminal, 100)
    os.close(terminal)  # the system sends SIGHUP
    assert os.waitpid(child, 0)[1] == 0
    assert (tmp_path / "file").read_text() == "saved"
