"""The loss under DistributedDataParallel: the gradient is the same for any split of a step."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.warm import run_ranks
from loss_ranks_driver import CUTS, OBJECTIVES, Student, denominator, make_batch

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

DRIVER = Path(__file__).with_name("loss_ranks_driver.py")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("ddp") / "gradients.pt"
    run_ranks(2, [str(DRIVER), str(out)])
    return torch.load(out)


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("normaliser", OBJECTIVES)
def test_two_ranks_have_the_gradient_of_one_batch(
    two: dict[str, Any], normaliser: str, cut: str
) -> None:
    case = make_batch()
    student = Student(case)
    loss = student(case, torch.arange(len(case.labels)), OBJECTIVES[normaliser], "dense")
    (loss / denominator(case, normaliser)).backward()
    for name, parameter in student.named_parameters():
        ours = two["gradients"][normaliser, cut][name].double()
        expected = parameter.grad.double()
        assert float((ours - expected).norm() / expected.norm()) <= 1e-6, name


def test_the_cuts_are_what_they_say(two: dict[str, Any]) -> None:
    """Unequal micro-batches, some without rows, and a rank that never has any."""
    first, second = (rows["rows", "by one"] for rows in two["rows"])
    assert sum(first) + sum(second) == len(make_batch().labels)
    assert sum(first) != sum(second)
    assert 0 in second
    first, second = (rows["rows", "one rank has no rows"] for rows in two["rows"])
    assert min(first) > 0
    assert second == [0]
