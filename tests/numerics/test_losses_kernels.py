"""The kernels compile for GPUs of five generations and fit them, also without a GPU."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest


@pytest.mark.skipif(find_spec("triton") is None, reason="triton is missing")
@pytest.mark.slow
def test_kernels_compile(tmp_path: Path) -> None:
    script = Path(__file__).with_name("compile_kernels.py")
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(script)],
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    assert len(lines) == 2 * (5 + 2 + 5) + 3 * (2 + 2) + 2
    assert all(int(line.split()[-1]) > 1000 for line in lines)
    assert "Warning" not in done.stderr
