"""CascadeTrainer on two ranks computes the same numbers as on one."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.training import capture
from helpers.warm import run_ranks

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

DRIVER = Path(__file__).with_name("cascade_trainer_driver.py")


def drive(root: Path, num_ranks: int, micro: int) -> dict[str, Any]:
    out = root / f"{num_ranks}.pt"
    run_ranks(num_ranks, [str(DRIVER), str(root), str(out), str(micro)])
    return torch.load(out)


def test_two_ranks_equal_one(tmp_path: Path) -> None:
    """Ranks have unequal numbers of rows, and keep unequal parts of them."""
    capture(tmp_path, num=41)
    one, two = drive(tmp_path, 1, micro=8), drive(tmp_path, 2, micro=2)
    assert len(one["steps"]) == len(two["steps"]) == 3
    for ours, theirs in zip(two["steps"], one["steps"], strict=True):
        for name in ("loss", "keep_fraction", "student_accuracy", "kl", "grad_norm"):
            assert float(ours[name]) == pytest.approx(float(theirs[name]), rel=2e-5), name
    for ours, theirs in zip(two["evals"], one["evals"], strict=True):
        for name in ("eval_loss", "eval_keep_fraction", "eval_student_accuracy", "eval_kl"):
            assert ours[name] == pytest.approx(theirs[name], rel=2e-5), name
    for name, value in one["weights"].items():
        torch.testing.assert_close(two["weights"][name], value, rtol=1e-4, atol=1e-6, msg=name)
