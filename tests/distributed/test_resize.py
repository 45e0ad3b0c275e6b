"""A run resumes correctly with another number of ranks.

CASKD_RANKS and CASKD_CASES in the environment name more numbers of ranks, and more STAGE:DTYPE.
"""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from helpers.training import capture, read_metrics
from helpers.warm import run_ranks
from resize_driver import SAVED, STEPS

from caskd.train.checkpoint import CHECKPOINTS, checkpoint_path
from caskd.train.checkpoint.tensor_files import SavedTensors

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

DRIVER = Path(__file__).with_name("resize_driver.py")
RANKS = tuple(int(n) for n in os.environ.get("CASKD_RANKS", "1,2").split(","))
CASES = tuple(os.environ.get("CASKD_CASES", "0:float32 3:float32 2:bfloat16").split())
FLOAT32 = tuple(case for case in CASES if case.endswith("float32"))


def drive(root: Path, num_ranks: int, runs: Iterable[str]) -> None:
    run_ranks(num_ranks, [str(DRIVER), str(root), *runs], timeout=600)


def name_of(case: str, saved: int, resumed: int | None = None) -> str:
    return case.replace(":", "-") + f"-{saved}" + (f"-to-{resumed}" if resumed else "")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every case run through by every number of ranks, and resumed half-way by every other."""
    directory = tmp_path_factory.mktemp("resize")
    capture(directory)
    for saved in RANKS:
        drive(directory, saved, (f"{name_of(case, saved)}:{case}" for case in CASES))
    for resumed in RANKS:
        for saved in RANKS:
            for case in CASES:
                half = directory / name_of(case, saved, resumed)
                shutil.copytree(directory / name_of(case, saved), half)
                for checkpoint in (half / CHECKPOINTS).iterdir():
                    if checkpoint != checkpoint_path(half, SAVED):
                        shutil.rmtree(checkpoint)
        names = ((name_of(case, saved, resumed), case) for saved in RANKS for case in CASES)
        drive(directory, resumed, (f"{name}:{case}" for name, case in names))
    return directory


def losses(run: Path) -> list[float]:
    lines = read_metrics(run)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    return [line["loss"] for line in lines]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("ranks", RANKS)
def test_the_same_ranks_go_on_bitwise(root: Path, case: str, ranks: int) -> None:
    whole, resumed = root / name_of(case, ranks), root / name_of(case, ranks, ranks)
    assert read_metrics(resumed) == read_metrics(whole)
    for part in ("weights", "optimizer"):
        ours, theirs = (
            SavedTensors(checkpoint_path(run, STEPS) / part) for run in (resumed, whole)
        )
        assert set(ours) == set(theirs) != set()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("case", FLOAT32)
@pytest.mark.parametrize("saved", RANKS)
@pytest.mark.parametrize("resumed", RANKS)
def test_other_ranks_see_the_same_losses(root: Path, case: str, saved: int, resumed: int) -> None:
    whole = losses(root / name_of(case, saved))
    other = losses(root / name_of(case, saved, resumed))
    assert other[:SAVED] == whole[:SAVED]
    assert other[SAVED:] == pytest.approx(whole[SAVED:], rel=1e-6)
    assert len(other[SAVED:]) == 10


def test_stages_share_one_trajectory(root: Path) -> None:
    """So that a checkpoint of one stage is as good as another's."""
    expected = losses(root / name_of(CASES[0], 1))
    for case in FLOAT32:
        for ranks in RANKS:
            assert losses(root / name_of(case, ranks)) == pytest.approx(expected, rel=1e-6)
