"""The capture's passes over the vocabulary in Triton equal those in torch."""

import os
from importlib.util import find_spec

import pytest
import torch

from caskd.precompute.rows.pass_check import _difference
from caskd.precompute.rows.passes import TorchPasses
from caskd.precompute.rows.topk import row_columns

pytestmark = pytest.mark.skipif(
    find_spec("triton") is None
    or not (torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET")),
    reason="needs triton, and a CUDA device or its interpreter",
)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # the interpreter's: Inf - Inf
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("num_columns", "k"), [(31, 3), (4096, 8), (70, 70), (4163, 64)])
def test_both_give_the_same_columns(dtype: torch.dtype, num_columns: int, k: int) -> None:
    """Ties, a row of one value, NaN, both infinities, labels in and outside of the top-k."""
    from caskd.precompute.rows.triton_passes import TritonPasses

    generator = torch.Generator().manual_seed(0)
    wide = (4 * torch.randn(7, num_columns + 9, generator=generator)).to(dtype)
    wide[:, num_columns:] = 100.0  # padding of the embedding
    wide[0] = 1.5
    for row, bad in ((3, torch.nan), (4, torch.inf), (5, -torch.inf)):
        wide[row, num_columns - 1] = bad
    logits = wide.to(DEVICE)[:, :num_columns]
    labels = torch.arange(7, device=DEVICE) * 13 % num_columns
    ours, plain = (
        row_columns(logits, labels, top_k=k, min_mass=0.9, passes=passes)
        for passes in (TritonPasses(), TorchPasses())
    )
    assert ours["num_kept"].tolist()[3:6] == [0, 0, 0]
    for name, values in plain.items():
        assert ours[name].dtype == values.dtype
        if values.dtype.is_floating_point:
            torch.testing.assert_close(ours[name], values, rtol=2e-5, atol=0, equal_nan=False)
        else:
            assert torch.equal(ours[name], values), name


def test_the_trial_before_the_first_use_finds_a_difference() -> None:
    from caskd.precompute.rows.triton_passes import TritonPasses

    class Wrong(TritonPasses):
        def maxima(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            maxima, finite = super().maxima(logits)
            return maxima + 1, finite

    assert _difference(TritonPasses(), torch.device(DEVICE)) is None
    assert "maxima" in str(_difference(Wrong(), torch.device(DEVICE)))
