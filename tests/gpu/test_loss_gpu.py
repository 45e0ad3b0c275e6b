"""The loss on a CUDA device, at sizes of practice; tests/numerics runs its kernels there, too."""

import pytest
import torch

from caskd.train.loss import TeacherRows, cascade_aware_loss
from caskd.train.loss.api import fitting_tile_rows

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
ROWS, WIDTH, VOCAB, TOP_K = 3000, 512, 50257, 32


@pytest.fixture(scope="module")
def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, TeacherRows]:
    """Hidden, head, labels and teacher on the device, in float32."""
    torch.manual_seed(0)
    hidden = torch.randn(ROWS, WIDTH, device="cuda")
    weight = torch.randn(VOCAB, WIDTH, device="cuda") / WIDTH**0.5
    values, ids = (3 * torch.randn(ROWS, VOCAB, device="cuda")).topk(TOP_K)
    tail_mass = torch.rand(ROWS, device="cuda") / 2
    logsumexp = values.logsumexp(1) - torch.log1p(-tail_mass)
    num_kept = torch.full((ROWS,), TOP_K, device="cuda")
    labels = torch.where(torch.rand(ROWS, device="cuda") < 0.5, ids[:, 0], ids[:, 1])
    return (
        hidden,
        weight,
        labels,
        TeacherRows(ids[:, 0], ids, values, num_kept, logsumexp, tail_mass),
    )


def gradients(batch, dtype: torch.dtype, **options) -> list[torch.Tensor]:
    hidden, weight, labels, teacher = batch
    # Copies: the batch is every test's, and must not become part of a graph.
    leaves = [tensor.to(dtype, copy=True).requires_grad_() for tensor in (hidden, weight)]
    sums = cascade_aware_loss(*leaves, labels, teacher, objective="cat-dist", **options)
    sums.loss.backward()
    return [sums.loss.detach(), *(leaf.grad for leaf in leaves)]


@pytest.mark.parametrize("impl", ["torch", "triton"])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 5e-3), (torch.float32, 2e-6)])
def test_against_dense_in_float64(batch, impl, dtype, bound):
    hidden, weight, labels, teacher = batch
    rounded = hidden.to(dtype).double(), weight.to(dtype).double(), labels, teacher
    expected = gradients(rounded, torch.float64, impl="dense")
    for ours, exact in zip(gradients(batch, dtype, impl=impl), expected, strict=True):
        assert float((ours.double() - exact).norm() / exact.norm()) <= bound


@pytest.mark.parametrize("impl", ["torch", "triton"])
def test_memory_is_two_tiles_whatever_the_rows(batch, impl):
    hidden, weight, labels, teacher = batch
    tile_rows = 256
    assert tile_rows < fitting_tile_rows(VOCAB, hidden.device)
    leaves = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    cascade_aware_loss(
        *leaves, labels, teacher, objective="cat-dist", impl=impl, tile_rows=tile_rows
    ).loss.backward()
    peak = torch.cuda.max_memory_allocated() - before - sum(leaf.grad.nbytes for leaf in leaves)
    assert peak <= 2 * tile_rows * VOCAB * 4 + (32 << 20)
