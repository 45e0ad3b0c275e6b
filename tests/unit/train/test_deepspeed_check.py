"""A DeepSpeed without an attribute that caskd uses is refused at start, in one line."""

import importlib
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import deepspeed
import pytest
import torch
from torch import nn

from caskd.store.errors import UsageError
from caskd.train.engine import TrainEngine, deepspeed_settings, init_distributed
from caskd.train.engine.deepspeed_check import (
    MODULE_ATTRIBUTES,
    TESTED_VERSION,
    check_attributes,
    engine_attributes,
)
from caskd.train.engine.deepspeed_engine import _quiet_logger

CASES = [(stage, dtype) for stage in (0, 1, 2, 3) for dtype in ("float32", "bfloat16")]


class Student(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Linear(4, 4)

    def forward(self, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.model(batch).sum(), batch.sum()


def start(stage: int, dtype: str) -> None:
    settings = deepspeed_settings(
        global_batch_size=2,
        micro_batch_size=1,
        accumulation_steps=2,
        clip_grad_norm=1.0,
        zero_stage=stage,
        dtype=dtype,
    )
    with init_distributed() as ranks:
        TrainEngine(Student(), settings, ranks, weight_decay=0.0).close()


def test_the_tested_version_is_the_one_of_the_constraints() -> None:
    lines = (Path(__file__).parents[3] / "constraints.txt").read_text().splitlines()
    assert f"deepspeed=={TESTED_VERSION}" in lines


@pytest.mark.slow
def test_the_installed_version_has_every_attribute() -> None:
    for stage, dtype in CASES:
        start(stage, dtype)


@pytest.mark.parametrize(("stage", "dtype"), CASES)
def test_an_engine_without_an_attribute_is_refused(stage: int, dtype: str) -> None:
    paths = engine_attributes(stage, bfloat16=dtype == "bfloat16")
    for missing in paths:
        engine = namespace(path for path in paths if not path.startswith(missing))
        with pytest.raises(UsageError) as caught:
            check_attributes(engine, "DeepSpeedEngine", paths, "0.99.1")
        message = str(caught.value)
        for fact in ("deepspeed 0.99.1", f"DeepSpeedEngine.{missing}", TESTED_VERSION):
            assert fact in message
        assert "pip install" in message
        assert "\n" not in message
    check_attributes(namespace(paths), "DeepSpeedEngine", paths, "0.99.1")


def namespace(paths: Any) -> SimpleNamespace:
    """An object with these dotted attributes."""
    root = SimpleNamespace()
    for path in paths:
        owner = root
        for part in path.split("."):
            owner.__dict__.setdefault(part, SimpleNamespace())
            owner = owner.__dict__[part]
    return root


@pytest.mark.parametrize("path", MODULE_ATTRIBUTES)
def test_a_package_without_an_attribute_is_refused_at_start(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner: Any = deepspeed
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    monkeypatch.delattr(owner, name)
    with pytest.raises(UsageError) as caught, init_distributed():
        pass
    assert f"deepspeed.{path}" in str(caught.value)


def test_an_optimizer_without_the_private_link_is_refused_before_a_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

    monkeypatch.delattr(DeepSpeedZeroOptimizer, "_lazy_init_hp_params_optimizer_state")
    with pytest.raises(UsageError, match=r"optimizer\._lazy_init_hp_params_optimizer_state"):
        start(2, "float32")


@pytest.mark.parametrize("rank", ["0", "3"])
def test_each_rank_of_several_is_bound_to_its_gpu(
    monkeypatch: pytest.MonkeyPatch, rank: str
) -> None:
    """DeepSpeed does it; without device_id NCCL guesses from the global rank, and warns."""
    backend, given = importlib.import_module("deepspeed.comm.torch"), {}
    gpus = SimpleNamespace(device_name=lambda: "cuda", device=lambda i: torch.device("cuda", i))
    monkeypatch.setattr(backend, "get_accelerator", lambda: gpus)
    monkeypatch.setenv("LOCAL_RANK", rank)

    def init_process_group(backend: str, device_id: object = None, **_: object) -> None:
        given["device_id"] = device_id

    monkeypatch.setattr(torch.distributed, "init_process_group", init_process_group)
    monkeypatch.setattr(torch.distributed, "get_backend", lambda: "nccl")
    backend.TorchBackend.init_process_group(
        SimpleNamespace(), "nccl", timeout=None, init_method=None, rank=int(rank), world_size=4
    )
    assert given["device_id"] == torch.device("cuda", int(rank))


def test_the_warning_of_a_single_rank_is_not_shown() -> None:
    """NCCL uses the current device there, which is the rank's."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _quiet_logger(0)
        warnings.warn("barrier(): using the device under current context. ...", stacklevel=1)
        with pytest.raises(UserWarning, match="other"):
            warnings.warn("other", stacklevel=1)
