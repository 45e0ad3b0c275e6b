"""Compare the Triton kernels with plain torch on a device, once, before `impl="auto"` uses them.

A missing or broken compiler then costs speed, but neither the run nor its numbers.

Dimension letters: n rows of a tile, V student vocabulary.
"""

import warnings
from functools import cache

import torch
from torch import Tensor

from caskd.store.errors import reason
from caskd.train.loss.tile import GradTerms, TileKernels
from caskd.train.loss.torch_kernels import TorchKernels

_SHAPE = (6, 5_003)  # more columns than one program reads at once, and no multiple of anything
_LIVE = (0, 2, 3, 5)


@cache
def kernels_agree(device: torch.device) -> bool:
    """Whether both implementations agree on a small tile; warns with the reason if they do not."""
    try:
        from caskd.train.loss.triton_kernels import TritonKernels

        tile = _tile(device)
        ours = _run_both(TritonKernels(tile, torch.float32), tile)
    except Exception as error:  # compilers, drivers and linkers raise many kinds
        _warn(f"{type(error).__name__}: {reason(error)}")
        return False
    plain = _run_both(TorchKernels(torch.float32), _tile(device))
    same = torch.equal(ours[0], plain[0]) and all(
        torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(ours[1:], plain[1:], strict=True)
    )
    if not same:
        _warn("their results differ from torch's")
    return same


def _tile(device: torch.device) -> Tensor:
    """Logits [n, V] with a tie for the largest, and a removed cell in each row."""
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(_SHAPE, generator=generator)
    logits[1, 4_100] = logits[1, 17] = 40.0
    logits[:, 7] = -torch.inf
    return logits.to(device)


def _run_both(kernels: TileKernels, tile: Tensor) -> tuple[Tensor, ...]:
    """Argmax, peak and total [n], and the gradient of the live rows."""
    read = kernels.read_(tile)
    live = torch.tensor(_LIVE, device=tile.device)
    weight = torch.linspace(0.5, 2.0, len(_LIVE), device=tile.device)
    terms = GradTerms(
        peak=read.peak[live],
        weight=weight,
        labels=live * 1_000,
        at_label=-weight,
        softcap=30.0,
    )
    return read.argmax, read.peak, read.total, kernels.differentiate_(tile, live, terms).clone()


def _warn(cause: str) -> None:
    warnings.warn(
        f"the Triton kernels of the loss do not work on this device ({cause}); the loss uses plain "
        "torch, which is slower",
        RuntimeWarning,
        stacklevel=2,
    )
