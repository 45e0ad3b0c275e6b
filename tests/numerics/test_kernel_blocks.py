"""No block that may be measured changes a bit of a result: a resumed run may find another one."""

import pytest
import torch
from loss_cases import DEVICES

from caskd.models.kernels import Block, candidates
from caskd.train.loss.kernel_check import _run_both, _tile

pytest.importorskip("triton")
DEVICE = torch.device(DEVICES["triton"])
BLOCKS = candidates((9, 0), 5_003)
DEFAULT = Block(4096, 8)


def test_the_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    from caskd.train.loss import triton_kernels

    results = []
    for block in (DEFAULT, *BLOCKS):
        chosen = {"read": DEFAULT, "differentiate": block}
        monkeypatch.setattr(triton_kernels, "block_for", lambda name, *_, c=chosen: c[name])
        tile = _tile(DEVICE)
        kernels = triton_kernels.TritonKernels(tile, torch.float32)
        results.append(_run_both(kernels, tile)[-1])
    assert all(torch.equal(result, results[0]) for result in results)


def test_the_maxima(monkeypatch: pytest.MonkeyPatch) -> None:
    from caskd.precompute.rows import triton_passes

    logits = torch.randn(3, 5_003, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    logits[1, 4_999], logits[2, 0] = torch.nan, torch.inf
    results = []
    for block in (DEFAULT, *BLOCKS):
        monkeypatch.setattr(triton_passes, "block_for", lambda *_, b=block: b)
        maxima, finite = triton_passes.TritonPasses().maxima(logits)
        assert finite.tolist() == [True, False, False]
        results.append(maxima[:1])
    assert all(torch.equal(result, results[0]) for result in results)
