"""Draws on a CUDA device are those of the CPU, with deterministic kernels too."""

import numpy as np
import pytest
import torch

from caskd.precompute.rows.sampling import draw_ids, sampled_fields

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_draws_are_those_of_the_cpu() -> None:
    """exp rounds a little otherwise there: a draw at the very edge between two ids may move."""
    logits = 3 * torch.randn(64, 49_152, generator=torch.Generator().manual_seed(0))
    numbers = np.random.default_rng(0).random((64, 50))
    here, there = draw_ids(logits, numbers), draw_ids(logits.cuda(), numbers).cpu()
    assert (here != there).float().mean() <= 1e-3


def test_deterministic_kernels_draw_the_same_twice() -> None:
    logits = torch.randn(64, 5000, generator=torch.Generator().manual_seed(1)).cuda()
    numbers, labels = np.random.default_rng(1).random((64, 20)), torch.arange(64).cuda()
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        one, two = (sampled_fields(logits, labels, numbers) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(before)
    for name, values in one.items():
        np.testing.assert_array_equal(values, two[name])
