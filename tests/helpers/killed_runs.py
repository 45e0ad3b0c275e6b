"""Trainings that are killed in the middle of a step, and what two runs must have in common."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from caskd.train.checkpoint import checkpoint_path
from caskd.train.checkpoint.tensor_files import SavedTensors
from caskd.train.engine import TrainEngine
from helpers.training import read_metrics


class Killed(BaseException):
    """Stands for a kill in a process that must live on: nothing catches it."""


def raise_killed() -> None:
    raise Killed


def dying(micro_steps: int, die: Callable[[], None] = raise_killed) -> Any:
    """A patch, to be entered: `die` is called in place of the micro-step after so many."""
    real, calls = TrainEngine.micro_step, []

    def micro_step(self: TrainEngine, *arguments: Any, **named: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) > micro_steps:
            die()
        return real(self, *arguments, **named)

    return mock.patch.object(TrainEngine, "micro_step", micro_step)


def weights_of(run: Path, step: int) -> dict[str, torch.Tensor]:
    """The weights in the checkpoint after a step."""
    return dict(SavedTensors(checkpoint_path(run, step) / "weights"))


def check_equal_runs(run: Path, other: Path, step: int) -> None:
    """Assert that two runs of so many steps have equal metrics and, bit for bit, equal weights."""
    assert read_metrics(run) == read_metrics(other)
    ours, theirs = weights_of(run, step), weights_of(other, step)
    assert ours.keys() == theirs.keys()
    different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert not different, f"weights differ: {different}"
