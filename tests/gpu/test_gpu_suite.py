"""The suite of benchmarks for a GPU runs at toy sizes: a GPU's time is not for finding typos."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SUITE = Path(__file__).parents[2] / "benchmarks" / "gpu_suite.py"


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="it would run inside of itself")
def test_it_runs_to_its_end_on_a_cpu(tmp_path: Path) -> None:
    words = ["--toy", "--rounds", "1", "--steps", "loss", "capture", "step", "--out", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, str(SUITE), *words], capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for table in ("loss_cpu", "capture", "step"):
        with (tmp_path / f"{table}.csv").open(newline="") as file:
            assert len(list(csv.DictReader(file))) > 5, table
    with (tmp_path / "aims.csv").open(newline="") as file:
        verdicts = {line["figure"]: line["verdict"] for line in csv.DictReader(file)}
    assert verdicts["step, waiting for data, share of the time"] in ("met", "missed")
    assert verdicts["loss, all rows, 16384x4096x128256, over dense cross-entropy"] == "not measured"
