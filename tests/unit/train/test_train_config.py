"""Options are validated where they are made, in one line that names the flag."""

import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import pytest

from caskd.store.errors import UsageError
from caskd.train.config import RESUMABLE_CHANGES, Objective, Tail, TrainConfig
from caskd.train.loss import OBJECTIVES
from caskd.train.loss.objectives import TAILS

REQUIRED = {"store": "s", "student": "m", "out": Path("o"), "steps": 3}


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"steps": 0}, "--steps is 0"),
        ({"global_batch_size": 0}, "--global-batch-size is 0"),
        ({"micro_batch_size": -1}, "--micro-batch-size is -1"),
        ({"lr": float("nan")}, "--lr is nan"),
        ({"lr": float("inf")}, "--lr is inf"),
        ({"clip_grad_norm": -1.0}, "--clip-grad-norm is -1.0"),
        ({"save_every": 0}, "--save-every is 0"),
        ({"w": 1.5}, "--w is 1.5"),
        ({"warmup_steps": 4}, "--warmup-steps is 4"),
    ],
)
def test_values_out_of_range_are_refused(option: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        TrainConfig(**{**REQUIRED, **option})
    assert "\n" not in str(caught.value)


def test_names_are_those_of_the_loss() -> None:
    assert set(get_args(Objective)) == set(OBJECTIVES)
    assert set(get_args(Tail)) == set(TAILS)


def test_what_a_resumed_run_may_change_exists() -> None:
    assert {field.name for field in fields(TrainConfig)} > RESUMABLE_CHANGES


def test_importing_the_options_costs_no_torch() -> None:
    code = (
        "import sys; from caskd.train import TrainConfig; TrainConfig;"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'deepspeed')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
