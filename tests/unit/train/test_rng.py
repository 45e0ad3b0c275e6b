"""The random state survives saving and loading."""

import random
from pathlib import Path

import numpy as np
import torch

from caskd.train.checkpoint import seed_everything
from caskd.train.checkpoint.rng import load_rng, save_rng


def draw() -> tuple[float, ...]:
    return (
        random.random(),
        random.gauss(0, 1),
        float(np.random.rand()),
        float(np.random.randn()),
        float(torch.rand(())),
        float(torch.randn(())),
    )


def test_every_generator_goes_on_where_it_was(tmp_path: Path) -> None:
    seed_everything(3)
    draw()  # leaves half a pair of gaussians behind in Python's and numpy's generators
    save_rng(tmp_path / "rng.npz")
    expected = [draw(), draw()]
    seed_everything(4)
    assert [draw(), draw()] != expected
    load_rng(tmp_path / "rng.npz")
    assert [draw(), draw()] == expected
