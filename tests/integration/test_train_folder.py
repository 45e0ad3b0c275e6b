"""The folder of a run: one writer, a start anew where nothing was saved, no export of a part."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.training import capture, config_for, read_metrics

from caskd.cli.main import main
from caskd.eval.config import EvalConfig
from caskd.eval.evaluate import evaluate
from caskd.store.errors import CorruptError, IdentityError, StoreError, UsageError
from caskd.store.io import CLAIM
from caskd.train import train
from caskd.train.checkpoint import checkpoint_path, read_state
from caskd.train.engine import TrainEngine
from caskd.train.run import exporter
from caskd.train.run.exporter import export

HOLD = """
import sys
from pathlib import Path
from caskd.store.io import claimed
with claimed(Path(sys.argv[1]), "--out"):
    print("held", flush=True)
    sys.stdin.read()
"""


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


@contextmanager
def held_elsewhere(folder: Path) -> Iterator[None]:
    """Another process writes to `folder`."""
    words = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield
        process.kill()


def tree(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("folder")
    capture(directory)
    return directory


@pytest.fixture(scope="module")
def whole(root: Path) -> Path:
    """A finished run of six steps, with checkpoints at 3 and 6."""
    config = config_for(root, out="whole", save_every=3)
    train(config)
    return config.out


def die_in_step(root: Path, out: Path, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is killed in this step, counted from 1."""
    real, calls = TrainEngine.micro_step, []

    def dying(self: TrainEngine, *arguments: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) > 2 * (step - 1):  # two micro-steps each
            raise Killed
        return real(self, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(TrainEngine, "micro_step", dying)
        with pytest.raises(Killed):
            train(config_for(root, out=str(out), save_every=3))


# -- one writer ----------------------------------------------------------------------------------


@pytest.mark.parametrize("resume", [False, True])
def test_a_second_run_is_refused_and_changes_nothing(
    root: Path, whole: Path, tmp_path: Path, resume: bool
) -> None:
    out = tmp_path / "run"
    if resume:
        shutil.copytree(whole, out)
    with held_elsewhere(out):
        before = tree(out)
        with pytest.raises(UsageError, match="in use by another caskd process") as caught:
            train(config_for(root, out=str(out), save_every=3, resume=resume))
        assert tree(out) == before
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


def test_a_dry_run_takes_no_claim(root: Path, tmp_path: Path) -> None:
    with held_elsewhere(tmp_path / "run"):
        train(config_for(root, out=str(tmp_path / "run"), dry_run=True))
        assert [path.name for path in (tmp_path / "run").iterdir()] == [CLAIM]
    train(config_for(root, out=str(tmp_path / "new"), dry_run=True))
    assert not (tmp_path / "new").exists()


def test_a_second_export_and_a_second_eval_are_refused(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with held_elsewhere(out):
        with pytest.raises(UsageError, match=r"OUT .* is in use by another caskd process"):
            export(whole, out)
        with pytest.raises(UsageError, match=r"--out .* is in use by another caskd process"):
            evaluate(EvalConfig(small=("a.parquet",), large="b.parquet", out=str(out)))
        assert [path.name for path in out.iterdir()] == [CLAIM]
    assert [path.name for path in tmp_path.iterdir()] in ([], ["out"])
    out.mkdir(exist_ok=True)
    (out / CLAIM).write_bytes(b"")  # of a process that was killed
    export(whole, out)
    assert (out / "model.safetensors").exists()
    assert not (out / CLAIM).exists()


def test_an_export_appears_only_when_it_is_complete(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, seen = tmp_path / "out", []
    monkeypatch.setattr(exporter, "check_reload", lambda *_, **__: seen.append(out.exists()))
    export(whole, out)
    assert seen == [False]
    assert list(tmp_path.iterdir()) == [out]


def test_a_mistake_leaves_no_folder(root: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError):
        train(config_for(root, out=str(tmp_path / "run"), store=str(tmp_path / "no-store")))
    assert list(tmp_path.iterdir()) == []


def test_another_programs_config_is_not_overwritten(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "student", tmp_path / "model")
    before = tree(tmp_path / "model")
    for resume in (False, True):
        with pytest.raises(UsageError):
            train(config_for(root, out=str(tmp_path / "model"), resume=resume))
    assert tree(tmp_path / "model") == before


@pytest.mark.parametrize("content", ["complete", "foreign"])
def test_a_save_never_takes_a_folder_that_it_did_not_make(
    root: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    """It appears while the run is under way: another process wrote it."""
    out = tmp_path / "run"
    target = checkpoint_path(out, 3)
    real = TrainEngine.micro_step

    def intrude(self: TrainEngine, *arguments: Any, **named: Any) -> Any:
        if not target.exists():
            if content == "complete":
                shutil.copytree(checkpoint_path(whole, 3), target)
            else:
                target.mkdir(parents=True)
                (target / "notes.txt").write_text("mine")
        return real(self, *arguments, **named)

    monkeypatch.setattr(TrainEngine, "micro_step", intrude)
    with pytest.raises(UsageError, match=r"step-00000003: exists and was not made by this save"):
        train(config_for(root, out=str(out), save_every=3))
    expected = tree(checkpoint_path(whole, 3)) if content == "complete" else {"notes.txt": b"mine"}
    assert tree(target) == expected


# -- a run that is rarely meant --------------------------------------------------------------------


@pytest.mark.parametrize(("steps", "warns"), [(500, False), (505, True)])
def test_more_than_a_hundred_epochs_are_warned_of(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], steps: int, warns: bool
) -> None:
    """40 examples in batches of 8: five steps an epoch."""
    train(config_for(root, out=str(tmp_path / "run"), steps=steps, dry_run=True))
    errors = capsys.readouterr().err
    text = f"--steps {steps} x --global-batch-size 8 = 101 epochs of the 40 examples of store"
    assert (text in errors) is warns
    assert ("warning" in errors) is warns


# -- resume where nothing was saved ---------------------------------------------------------------


def test_a_run_that_died_before_its_first_checkpoint_starts_anew(
    root: Path,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "run"
    die_in_step(root, out, 3, monkeypatch)
    first = (out / "metrics.jsonl").read_bytes()
    assert first.count(b"\n") == 2
    checkpoint_path(out, 3).mkdir(parents=True)  # and a save that was cut short
    (checkpoint_path(out, 3) / "weights").mkdir()
    train(config_for(root, out=str(out), save_every=3, resume=True))
    assert f"no checkpoint was completed in {out}: starts anew" in capsys.readouterr().out
    assert (out / "metrics.jsonl.1").read_bytes() == first
    assert read_metrics(out) == read_metrics(whole)
    assert read_state(checkpoint_path(out, 6)).step == 6


def test_each_further_start_anew_keeps_the_logs_of_all_before(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    die_in_step(root, out, 2, monkeypatch)
    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(TrainEngine, "micro_step", lambda *_, **__: (_ for _ in ()).throw(Killed))
            with pytest.raises(Killed):
                train(config_for(root, out=str(out), save_every=3, resume=True))
    lines = [
        len((out / f"metrics.jsonl{end}").read_text().splitlines()) for end in ("", ".1", ".2")
    ]
    assert lines == [0, 1, 0]


def test_a_start_anew_is_refused_where_it_would_lose_or_mix_something(
    root: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        train(config_for(root, out=str(tmp_path / "typo" / "run"), resume=True))
    assert not (tmp_path / "typo").exists()

    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no complete checkpoint"):
        train(config_for(root, out=str(tmp_path / "empty"), resume=True))

    died = tmp_path / "died"
    die_in_step(root, died, 2, monkeypatch)
    before = tree(died)
    with pytest.raises(IdentityError, match=r"--lr 0\.5: expected 0\.001"):
        train(config_for(root, out=str(died), save_every=3, resume=True, lr=0.5))
    recorded = json.loads((died / "config.json").read_text())
    recorded["stores"][0]["seal"] = "0" * 64
    (died / "config.json").write_text(json.dumps(recorded))
    with pytest.raises(IdentityError, match=r"--store: .*000000000000"):
        train(config_for(root, out=str(died), save_every=3, resume=True))
    (died / "config.json").write_bytes(before["config.json"])
    assert tree(died) == before

    (checkpoint_path(died, 3)).mkdir(parents=True)
    (checkpoint_path(died, 3) / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"notes\.txt.*interrupted save"):
        train(config_for(root, out=str(died), save_every=3, resume=True))
    assert (checkpoint_path(died, 3) / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("lost", ["COMPLETE", "checkpoint", "bytes"])
def test_a_checkpoint_that_was_completed_is_never_taken_for_none(
    root: Path, whole: Path, tmp_path: Path, lost: str
) -> None:
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    for step in (3, 6):
        checkpoint = checkpoint_path(out, step)
        if lost == "COMPLETE":
            (checkpoint / "COMPLETE").unlink()
        elif lost == "checkpoint":
            shutil.rmtree(checkpoint)
        else:
            (checkpoint / "state.json").write_bytes(b"{}")
    before = tree(out)
    with pytest.raises((UsageError, CorruptError)):
        train(config_for(root, out=str(out), save_every=3, resume=True))
    assert tree(out) == before


# -- stopped is not finished ----------------------------------------------------------------------


def test_an_unfinished_run_is_exported_only_where_it_is_allowed(
    root: Path,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    part = tmp_path / "part"
    die_in_step(root, part, 5, monkeypatch)
    out = tmp_path / "model"
    for source in (part, checkpoint_path(part, 3)):
        assert main(["export", str(source), str(out)]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("caskd: ")
        assert "step 3 of 6" in error
        assert "--allow-unfinished" in error
        assert not out.exists()
    assert main(["export", str(part), str(out), "--allow-unfinished"]) == 0
    card = (out / "README.md").read_text()
    assert "not fully trained" in card
    assert "step 3 of 6" in card
    # An early checkpoint of a finished run is a choice; the card tells which one it is.
    early = export(checkpoint_path(whole, 3), tmp_path / "early")
    assert "step 3 of 6" in (early / "README.md").read_text()
    full = (export(whole, tmp_path / "full") / "README.md").read_text()
    assert "not fully trained" not in full
    assert "steps: 6 of 6, each of 8 examples" in full


def test_the_mark_of_a_stop_goes_when_the_run_is_resumed(
    root: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    die_in_step(root, out, 4, monkeypatch)
    lines = (out / "metrics.jsonl").read_text().splitlines()
    stopped = json.dumps({**json.loads(lines[2]), "stopped": True})
    (out / "metrics.jsonl").write_text("\n".join([*lines[:2], stopped, ""]))
    train(replace(config_for(root, out=str(out), save_every=3), resume=True))
    assert read_metrics(out) == read_metrics(whole)
