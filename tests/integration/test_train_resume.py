"""A run that was stopped at any moment goes on as if it had not been."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from training import capture, config_for, read_metrics, set_dropout

from caskd.store.errors import CorruptError, IdentityError, UsageError
from caskd.train import checkpoint as checkpoint_module
from caskd.train import train
from caskd.train.config import TrainConfig
from caskd.train.engine import TrainEngine
from caskd.train.manifest import CHECKPOINTS, checkpoint_path, is_complete

HALF, WHOLE = 3, 6


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("resume")
    capture(directory)
    set_dropout(directory / "student", 0.1)  # so that the random state matters
    return directory


def options(root: Path, out: Path, **changes: Any) -> TrainConfig:
    return config_for(root, out=str(out), steps=WHOLE, save_every=HALF, **changes)


@pytest.fixture(scope="module")
def uninterrupted(root: Path) -> Path:
    config = options(root, root / "whole")
    train(config)
    return config.out


def kill_after(monkeypatch: pytest.MonkeyPatch, micro_steps: int) -> None:
    """The process 'dies' in the middle of a step."""
    real = TrainEngine.micro_step
    calls = []

    def dying(self: TrainEngine, *arguments: Any, **named: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) > micro_steps:
            raise Killed
        return real(self, *arguments, **named)

    monkeypatch.setattr(TrainEngine, "micro_step", dying)


def weights_of(run: Path, step: int = WHOLE) -> dict[str, torch.Tensor]:
    return load_file(checkpoint_path(run, step) / "weights.safetensors")


def check_equal_runs(run: Path, other: Path) -> None:
    assert read_metrics(run) == read_metrics(other)
    ours, theirs = weights_of(run), weights_of(other)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_resume_is_bitwise(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: int
) -> None:
    whole = options(root, tmp_path / "whole", zero_stage=stage)
    train(whole)
    with monkeypatch.context() as patch:
        kill_after(patch, micro_steps=9)  # two a step: in the middle of the fifth
        with pytest.raises(Killed):
            train(options(root, tmp_path / "run", zero_stage=stage))
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == [1, 2, 3, 4]
    train(options(root, tmp_path / "run", zero_stage=stage, resume=True))
    check_equal_runs(tmp_path / "run", whole.out)


@pytest.mark.parametrize("moment", ["engine.save", "save_rng", "save_file", "complete"])
def test_a_kill_during_a_save_leaves_the_checkpoint_before(
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    uninterrupted: Path,
    capsys: pytest.CaptureFixture[str],
    moment: str,
) -> None:
    def dying(*_: object) -> None:
        raise Killed

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        kill_after(patch, micro_steps=2 * (HALF + 1))
        with pytest.raises(Killed):
            train(options(root, run))
    with monkeypatch.context() as patch:
        if moment == "engine.save":
            patch.setattr(TrainEngine, "save", dying)
        else:
            patch.setattr(checkpoint_module, moment, dying)
        with pytest.raises(Killed):
            train(options(root, run, resume=True))
    assert checkpoint_path(run, WHOLE).is_dir()
    assert not is_complete(checkpoint_path(run, WHOLE))
    train(options(root, run, resume=True))
    assert "step-00000006 is not complete" in capsys.readouterr().err
    check_equal_runs(run, uninterrupted)


@pytest.fixture
def half_way(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run with a checkpoint after HALF steps, killed one step later."""
    with monkeypatch.context() as patch:
        kill_after(patch, micro_steps=2 * (HALF + 1))
        with pytest.raises(Killed):
            train(options(root, tmp_path / "run"))
    return tmp_path / "run"


def test_a_flipped_byte_is_noticed_before_anything_is_unpickled(
    root: Path, half_way: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = next((checkpoint_path(half_way, HALF) / "deepspeed").glob("*optim_states.pt"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)

    def unpickling(*_: object, **__: object) -> None:
        raise AssertionError("torch.load was called")

    monkeypatch.setattr(torch, "load", unpickling)
    with pytest.raises(CorruptError, match=r"optim_states\.pt has other bytes"):
        train(options(root, half_way, resume=True))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"objective": "xent"}, "--objective is xent, but the run was started with dist"),
        ({"lr": 2e-3}, "--lr is 0.002"),
        ({"seed": 5}, "--seed is 5"),
        ({"zero_stage": 2}, "--zero-stage is 2"),
        ({"global_batch_size": 16}, "--global-batch-size is 16"),
    ],
)
def test_another_run_is_not_resumed(
    root: Path, half_way: Path, change: dict[str, Any], named: str
) -> None:
    with pytest.raises(IdentityError, match=named) as caught:
        train(options(root, half_way, resume=True, **change))
    assert caught.value.exit_code == 3


def test_another_store_is_not_resumed(root: Path, half_way: Path, tmp_path: Path) -> None:
    capture(tmp_path / "other", num=44)
    store = str(tmp_path / "other" / "store")
    with pytest.raises(IdentityError, match="--store: seals and weights give"):
        train(options(root, half_way, resume=True, store=store))


def test_another_number_of_ranks_is_refused(
    root: Path, half_way: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="written by 1 ranks, but there are 2"):
        train(options(root, half_way, resume=True))


def test_a_micro_batch_of_another_size_may_go_on(root: Path, half_way: Path) -> None:
    train(options(root, half_way, resume=True, micro_batch_size=2))
    assert [line["step"] for line in read_metrics(half_way)] == list(range(1, WHOLE + 1))


@pytest.mark.slow
def test_sigterm_saves_and_exits_well(root: Path, tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "caskd.cli", "train", "--store", str(root / "store"),
        "--student", str(root / "student"), "--out", str(tmp_path / "run"), "--steps", "100000",
        "--global-batch-size", "4", "--micro-batch-size", "4", "--dtype", "float32",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    step = read_metrics(tmp_path / "run")[-1]["step"]
    saved = [path.name for path in (tmp_path / "run" / CHECKPOINTS).iterdir()]
    assert saved == [f"step-{step:08d}"]
    assert is_complete(checkpoint_path(tmp_path / "run", step))
