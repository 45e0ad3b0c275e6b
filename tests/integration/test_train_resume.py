"""A resumed run equals the uninterrupted run, wherever it was stopped."""

import shutil
import signal
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.killed_runs import Killed, check_equal_runs, dying
from helpers.training import capture, config_for, read_metrics, set_dropout
from helpers.warm import WarmProcess

from caskd.store.errors import CorruptError, IdentityError, UsageError
from caskd.train import train
from caskd.train.checkpoint import CHECKPOINTS, checkpoint_path, is_complete
from caskd.train.checkpoint import save as checkpoint_module
from caskd.train.config import TrainConfig
from caskd.train.run import start as start_module
from caskd.train.run.plan import plan_run

HALF, WHOLE = 3, 6


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


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_resume_is_bitwise(root: Path, tmp_path: Path, stage: int) -> None:
    whole = options(root, tmp_path / "whole", zero_stage=stage)
    train(whole)
    with dying(micro_steps=9), pytest.raises(Killed):  # two a step: in the middle of the fifth
        train(options(root, tmp_path / "run", zero_stage=stage))
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == [1, 2, 3, 4]
    train(options(root, tmp_path / "run", zero_stage=stage, resume=True))
    check_equal_runs(tmp_path / "run", whole.out, WHOLE)


def test_a_student_that_moved_is_the_same_and_no_file_says_where_it_was(
    root: Path, tmp_path: Path
) -> None:
    train(replace(options(root, tmp_path / "run"), steps=WHOLE, save_every=None))
    shutil.copytree(root / "student", tmp_path / "elsewhere" / "student")
    moved = {**options(root, tmp_path / "run").to_json(), "resume": True}
    moved = {**moved, "student": str(tmp_path / "elsewhere" / "student"), "out": tmp_path / "run"}
    assert plan_run(TrainConfig(**moved)).first_step == WHOLE
    for file in (tmp_path / "run").rglob("*"):
        assert file.is_dir() or str(root).encode() not in file.read_bytes(), file


@pytest.mark.parametrize("moment", ["save_rng", "write_tensors", "_describe_student", "complete"])
def test_a_kill_during_a_save_leaves_the_checkpoint_before(
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    uninterrupted: Path,
    capsys: pytest.CaptureFixture[str],
    moment: str,
) -> None:
    def die(*_: object) -> None:
        raise Killed

    run = tmp_path / "run"
    with dying(micro_steps=2 * (HALF + 1)), pytest.raises(Killed):
        train(options(root, run))
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_module, moment, die)
        with pytest.raises(Killed):
            train(options(root, run, resume=True))
    assert checkpoint_path(run, WHOLE).is_dir()
    assert not is_complete(checkpoint_path(run, WHOLE))
    train(options(root, run, resume=True))
    assert "step-00000006 is not complete" in capsys.readouterr().err
    check_equal_runs(run, uninterrupted, WHOLE)


@pytest.fixture
def half_way(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run with a checkpoint after HALF steps, killed one step later."""
    with dying(micro_steps=2 * (HALF + 1)), pytest.raises(Killed):
        train(options(root, tmp_path / "run"))
    return tmp_path / "run"


def test_nothing_of_a_checkpoint_is_a_pickle(root: Path, half_way: Path) -> None:
    """Pickles of torch are zip files; a pickle alone starts with its protocol."""
    for path in checkpoint_path(half_way, HALF).rglob("*"):
        if path.is_file() and path.suffix != ".npz":  # read with allow_pickle=False
            assert not zipfile.is_zipfile(path), path
            assert path.suffix in (".safetensors", ".json", ".jinja", "") or path.name == "COMPLETE"
            assert path.read_bytes()[:1] != b"\x80", path


def test_damage_to_any_file_is_noticed_before_any_is_loaded(
    root: Path, half_way: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loading(*_: object, **__: object) -> None:
        raise AssertionError("something was loaded")

    checkpoint = checkpoint_path(half_way, HALF)
    with monkeypatch.context() as patch:
        patch.setattr(start_module, "load_weights", loading)
        patch.setattr(start_module, "load_checkpoint", loading)
        for path in sorted(p for p in checkpoint.rglob("*") if p.is_file()):
            content = path.read_bytes()
            for damaged in damages(content):
                if damaged is None:
                    path.unlink()
                else:
                    path.write_bytes(damaged)
                with pytest.raises((CorruptError, UsageError)):
                    plan_run(options(root, half_way, resume=True))
            path.write_bytes(content)
    plan_run(options(root, half_way, resume=True))


def damages(content: bytes) -> list[bytes | None]:
    """Missing, cut short, longer, and one bit changed in the middle."""
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 4
    return [None, content[:-1], content + b"\0", bytes(flipped)]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"objective": "xent"}, "--objective xent: expected dist,.*the run was started"),
        ({"lr": 2e-3}, "--lr 0.002: expected 0.001"),
        ({"seed": 5}, "--seed 5: expected 0"),
        ({"global_batch_size": 16}, "--global-batch-size 16: expected 8"),
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
    with pytest.raises(
        IdentityError, match=r"--store: .*digest \w+; expected \w+, .*the run was trained"
    ):
        train(options(root, half_way, resume=True, store=store))


@pytest.mark.parametrize(("saved", "resumed"), [(0, 3), (3, 2), (1, 0)])
def test_another_stage_may_go_on(
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    uninterrupted: Path,
    saved: int,
    resumed: int,
) -> None:
    with dying(micro_steps=2 * (HALF + 1)), pytest.raises(Killed):
        train(options(root, tmp_path / "run", zero_stage=saved))
    train(options(root, tmp_path / "run", zero_stage=resumed, resume=True))
    losses = [line["loss"] for line in read_metrics(tmp_path / "run")]
    expected = [line["loss"] for line in read_metrics(uninterrupted)]
    assert losses == pytest.approx(expected, rel=1e-6)


def test_a_micro_batch_of_another_size_may_go_on(root: Path, half_way: Path) -> None:
    train(options(root, half_way, resume=True, micro_batch_size=2))
    assert [line["step"] for line in read_metrics(half_way)] == list(range(1, WHOLE + 1))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.slow
def test_a_signal_saves_and_exits(root: Path, tmp_path: Path, number: signal.Signals) -> None:
    command = [
        "-m", "caskd.cli", "train", "--store", str(root / "store"),
        "--student", str(root / "student"), "--out", str(tmp_path / "run"), "--steps", "100000",
        "--global-batch-size", "4", "--micro-batch-size", "4", "--dtype", "float32",
    ]  # fmt: skip
    process = WarmProcess(command)
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
        assert process.poll() is None, process.stderr
        time.sleep(0.1)
    process.send_signal(number)
    try:
        assert process.wait(60) == 128 + number, process.stderr
    finally:
        process.kill()
    errors = process.stderr
    last = read_metrics(tmp_path / "run")[-1]
    step = last["step"]
    assert last["stopped"] is True
    message = errors.splitlines()[-1]
    begin = f"caskd: stopped by {number.name} after step {step:,} of 100,000, saved in"
    assert message.startswith(begin)
    assert message.endswith("--resume")
    assert not (tmp_path / "run" / ".claim").exists()
    saved = [path.name for path in (tmp_path / "run" / CHECKPOINTS).iterdir()]
    assert saved == [f"step-{step:08d}"]
    assert is_complete(checkpoint_path(tmp_path / "run", step))
