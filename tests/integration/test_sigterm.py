"""SIGTERM ends every command with exit code 143, and nothing is left half written."""

import os
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
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()

real = cli.resolve
cli.resolve = lambda target: command if target.endswith(":evaluate") else real(target)
sys.exit(cli.main(["eval", "--small", "a.parquet", "--large", "b.parquet", "--out", sys.argv[1]]))
"""


@pytest.mark.parametrize("existed", [False, True])
def test_a_command_without_a_handler_of_its_own(tmp_path: Path, existed: bool) -> None:
    out = tmp_path / "out"
    if existed:
        out.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", STOPPED, str(out)],
        capture_output=True, text=True, timeout=120, check=False, env=dict(os.environ),
    )  # fmt: skip
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert done.stderr.startswith("caskd: stopped by SIGTERM")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == ([out] if existed else [])
    with claimed(out, "--out"):
        pass


@pytest.mark.parametrize("code", ["import caskd.cli.main as m; m.main(['--version'])"])
def test_the_handler_goes_with_the_command(code: str) -> None:
    code += "; import signal; assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, capture_output=True)
