"""`--init-from RUN`: a new run with the weights of a finished one, and nothing else of it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny import save_tiny
from helpers.training import capture, config_for, read_metrics
from safetensors.torch import load_file

from caskd.store.errors import IdentityError, UsageError
from caskd.train import train
from caskd.train.checkpoint import CHECKPOINTS, find_checkpoint
from caskd.train.config import TrainConfig
from caskd.train.run.exporter import export
from caskd.train.run.plan import plan_run


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("further")
    capture(directory)
    for name, more in (("full", {}), ("lora", {"lora_rank": 4, "lr": 1e-2})):
        train(config_for(directory, out=name, steps=2, save_every=1, **more))
        export(directory / name, directory / f"{name}-model")
    return directory


def options(root: Path, out: Path, **changes: Any) -> TrainConfig:
    return config_for(root, out=str(out), **{"steps": 2, **changes})


@pytest.mark.slow
def test_it_equals_a_run_from_the_exported_model(root: Path, tmp_path: Path) -> None:
    train(options(root, tmp_path / "a", init_from=root / "full"))
    train(options(root, tmp_path / "b", student=str(root / "full-model")))
    assert read_metrics(tmp_path / "a") == read_metrics(tmp_path / "b")
    weights = [
        load_file(next((find_checkpoint(tmp_path / run) / "weights").glob("*.safetensors")))
        for run in "ab"
    ]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.slow
def test_adapters_go_on(root: Path, tmp_path: Path) -> None:
    """A further run of learning rate almost 0 exports the model that it started with."""
    train(options(root, tmp_path / "a", init_from=root / "lora", lora_rank=4, lr=1e-30))
    export(tmp_path / "a", tmp_path / "model")
    ours, theirs = (
        load_file(folder / "model.safetensors")
        for folder in (tmp_path / "model", root / "lora-model")
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.slow
def test_the_run_and_its_card_name_it_and_a_resume_knows_it(root: Path, tmp_path: Path) -> None:
    changes = {"init_from": root / "full", "steps": 2}
    train(options(root, tmp_path / "a", **changes))
    recorded = json.loads((tmp_path / "a" / "config.json").read_text())["config"]["init_from"]
    assert recorded.startswith("full step 2 sha256:")
    assert str(root) not in recorded
    export(tmp_path / "a", tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text()
    assert "full step 2" in card
    assert "label weight 0.5" in card
    plan = plan_run(options(root, tmp_path / "a", resume=True, **changes))
    assert plan.first_step == 2
    with pytest.raises(IdentityError, match="--init-from"):
        plan_run(options(root, tmp_path / "a", resume=True))


def test_more_steps_name_the_flag(root: Path) -> None:
    with pytest.raises(IdentityError, match=r"--steps 9: expected 2.*--init-from RUN"):
        plan_run(options(root, root / "full", steps=9, save_every=1, resume=True))


def test_another_student_or_other_adapters_are_refused(root: Path, tmp_path: Path) -> None:
    other = str(save_tiny(tmp_path / "wide", hidden=64))
    with pytest.raises(UsageError, match=r"--student .*head_dim is 16.*expected 8"):
        plan_run(options(root, tmp_path / "a", init_from=root / "full", student=other))
    for run, rank in (("full", 4), ("lora", None), ("lora", 8)):
        with pytest.raises(UsageError, match=r"--lora-rank .*caskd export .*--student"):
            plan_run(options(root, tmp_path / "a", init_from=root / run, lora_rank=rank))


def test_what_is_no_finished_run_is_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is a teacher store; expected a training run"):
        plan_run(options(root, tmp_path / "a", init_from=root / "store"))
    half = root / "full" / CHECKPOINTS / "step-00000001"
    assert plan_run(options(root, tmp_path / "a", init_from=half)).initial is not None
