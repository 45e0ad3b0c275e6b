"""Training on a CUDA device: stages of ZeRO, packing, and a run that is killed and resumed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.killed_runs import Killed, check_equal_runs, dying, weights_of
from helpers.training import capture, config_for, read_metrics, set_dropout
from transformers import AutoModelForCausalLM

from caskd.store import TeacherStore
from caskd.train import train
from caskd.train.data.batches import MicroBatch, collate, fields_to_read
from caskd.train.model.student import LossOptions, StudentWithLoss
from caskd.train.objectives import OBJECTIVES

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
STEPS = 6


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("training")
    capture(directory)
    return directory


@pytest.fixture
def random_student(root: Path) -> Iterator[None]:
    """A student with dropout, and torch as it was afterwards: a deterministic run changes it."""
    before = torch.are_deterministic_algorithms_enabled()
    set_dropout(root / "student", 0.1)
    yield
    set_dropout(root / "student", 0.0)
    torch.use_deterministic_algorithms(before)


@pytest.fixture(scope="module")
def one_process(root: Path) -> Path:
    """A float32 run without ZeRO, to which its stages are compared."""
    config = config_for(root, out="stage0", steps=STEPS, zero_stage=0, objective="cat-dist")
    train(config)
    return config.out


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_stages_learn_the_same(root: Path, one_process: Path, stage: int) -> None:
    config = config_for(
        root, out=f"stage{stage}", steps=STEPS, zero_stage=stage, objective="cat-dist"
    )
    train(config)
    for ours, theirs in zip(read_metrics(config.out), read_metrics(one_process), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)
    expected = weights_of(one_process, STEPS)
    for name, value in weights_of(config.out, STEPS).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stage", [0, 1, 3])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.usefixtures("random_student")
def test_deterministic_resume_is_bitwise(
    root: Path, tmp_path: Path, stage: int, dtype: str
) -> None:
    options: dict[str, Any] = {
        "steps": STEPS, "save_every": STEPS // 2, "zero_stage": stage, "dtype": dtype,
        "objective": "cat-dist", "deterministic": True,
    }  # fmt: skip
    train(config_for(root, out=str(tmp_path / "whole"), **options))
    # Two micro-steps a step: in the middle of the fifth.
    with dying(micro_steps=9), pytest.raises(Killed):
        train(config_for(root, out=str(tmp_path / "run"), **options))
    train(config_for(root, out=str(tmp_path / "run"), resume=True, **options))
    check_equal_runs(tmp_path / "run", tmp_path / "whole", STEPS)


def test_padded_and_packed_there_are_alone_here(root: Path) -> None:
    store = TeacherStore.open(root / "store")
    chosen = np.argsort(-store.token_counts(), kind="stable")[::3]
    fields = fields_to_read(OBJECTIVES["dist"])
    model = AutoModelForCausalLM.from_pretrained(root / "student", dtype=torch.float32)
    alone = [collate(store.read([i], fields), 0) for i in chosen]
    loss, gradient = _loss_and_gradient(model, alone, "cpu")
    for packed in (False, True):
        batch = collate(store.read(chosen, fields), 0, packed=packed)
        there = _loss_and_gradient(model, [batch], "cuda")
        assert there[0] == pytest.approx(loss, rel=1e-4)
        for name, value in gradient.items():
            torch.testing.assert_close(there[1][name], value, rtol=1e-3, atol=1e-4)


def _loss_and_gradient(
    model: Any, batches: list[MicroBatch], device: str
) -> tuple[float, dict[str, torch.Tensor]]:
    student = StudentWithLoss(model.to(device), LossOptions(OBJECTIVES["dist"], "bucket"))
    student.zero_grad()
    total = 0.0
    for batch in batches:
        loss = student(batch.to(torch.device(device)))[0]
        loss.backward()
        total += float(loss.detach())
    return total, {name: p.grad.cpu().clone() for name, p in model.named_parameters()}
