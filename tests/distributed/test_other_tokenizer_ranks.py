"""A student with another tokenizer on two ranks: the losses of one rank."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.other_tokenizer import captured, run, save
from helpers.training import read_metrics

pytestmark = [pytest.mark.slow, pytest.mark.distributed]


def test_two_ranks_have_the_losses_of_one(tmp_path: Path) -> None:
    records = [
        {"prompt": "What is it?", "response": f" It is{' so' * count}, and that is {count}."}
        for count in range(9)
    ]
    captured(tmp_path, records, save(tmp_path / "teacher", "byte-level"))
    save(tmp_path / "student", "prepend")
    one = read_metrics(run(tmp_path, "one", dtype="float32").parents[1])
    words = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        "-m", "caskd.cli", "train", "--store", str(tmp_path / "store"),
        "--student", str(tmp_path / "student"), "--out", str(tmp_path / "two"), "--steps", "4",
        "--global-batch-size", "4", "--micro-batch-size", "1", "--dtype", "float32",
        "--lr", "1e-2", "--objective", "cat-alm", "--eval-store", str(tmp_path / "store"),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        words, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for ours, theirs in zip(read_metrics(tmp_path / "two"), one, strict=True):
        assert ours["keep_fraction"] == pytest.approx(theirs["keep_fraction"], abs=1e-12)
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=2e-5, abs=1e-7)
        assert ours["student_accuracy"] == pytest.approx(theirs["student_accuracy"], abs=1e-12)
