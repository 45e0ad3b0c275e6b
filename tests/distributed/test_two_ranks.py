"""The command line under torchrun: two ranks train, stop, resume and fail together.

The first launch is torchrun itself; the others have the environment that it gives.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.training import capture, config_for, read_metrics
from helpers.warm import run_ranks, start_ranks

from caskd.train import train
from caskd.train.checkpoint import CHECKPOINTS, checkpoint_path
from caskd.train.checkpoint.tensor_files import SavedTensors

pytestmark = [pytest.mark.slow, pytest.mark.distributed]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("two")
    capture(directory)
    return directory


def words_for(root: Path, out: Path, *more: str) -> list[str]:
    return [
        "-m", "caskd.cli", "train", "--store", str(root / "store"), "--out", str(out),
        "--student", str(root / "student"), "--steps", "6", "--save-every", "3",
        "--global-batch-size", "8", "--micro-batch-size", "2", "--dtype", "float32", "--lr", "1e-3",
        *more,
    ]  # fmt: skip


def torchrun(words: list[str]) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [*launcher, "--nproc-per-node", "2", *words], env=environment, capture_output=True,
        text=True, timeout=300, check=False,
    )  # fmt: skip


def test_two_ranks_resume_bitwise(root: Path, tmp_path: Path) -> None:
    """With a CALL token, whose rows are chosen by counts that the ranks sum up."""
    stage = ("--zero-stage", "3", "--delegate", "rho", "--delegate-share", "0.3")
    first = torchrun(words_for(root, tmp_path / "run", *stage))
    assert first.returncode == 0, first.stderr[-3000:]
    assert first.stdout.count("8 examples = 2 x 2 ranks x 2 accumulation") == 1, (
        "rank 0 alone talks"
    )
    whole = tmp_path / "whole"
    shutil.copytree(tmp_path / "run", whole)

    shutil.rmtree(checkpoint_path(tmp_path / "run", 6))  # as if killed after step 3
    run_ranks(2, words_for(root, tmp_path / "run", *stage, "--resume"))
    assert read_metrics(tmp_path / "run") == read_metrics(whole)
    assert [line["step"] for line in read_metrics(whole)] == [1, 2, 3, 4, 5, 6]
    one = {"objective": "cat-dist", "delegate": "rho", "delegate_share": 0.3}
    train(config_for(root, "one-rank", **one))
    for line, alone in zip(read_metrics(whole), read_metrics(root / "one-rank"), strict=True):
        assert line["delegated_share"] == pytest.approx(alone["delegated_share"], abs=1e-12)
        assert line["loss"] == pytest.approx(alone["loss"], rel=1e-5)
    assert 0.1 < line["delegated_share"] < 0.6
    ours, theirs = (
        dict(SavedTensors(checkpoint_path(run, 6) / "weights")) for run in (tmp_path / "run", whole)
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_mistake_ends_all_ranks_and_writes_nothing(root: Path, tmp_path: Path) -> None:
    ranks = start_ranks(2, words_for(root, tmp_path / "run", "--micro-batch-size", "3"))
    assert [rank.wait() for rank in ranks] == [2, 2]
    assert any("pass --global-batch-size 12" in rank.stderr for rank in ranks)
    assert not (tmp_path / "run" / CHECKPOINTS).exists()
    assert not (tmp_path / "run").exists()
