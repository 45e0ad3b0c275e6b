"""Whether the Triton kernels do on a device what plain torch does: tried once, before `auto` takes
them. A compiler that is missing or wrong must cost speed, not a run and not its numbers.

Dimension letters: n rows of a tile, V student vocabulary.
"""

import warnings
from functools import cache

import torch
from torch import Tensor

from caskd.train.loss.tile import Passes, RowChange
from caskd.train.loss.torch_passes import TorchPasses

_SHAPE = (6, 5_003)  # more columns than one program reads at once, and no multiple of anything
_LIVE = (0, 2, 3, 5)


@cache
def kernels_agree(device: torch.device) -> bool:
    """Whether both passes give the same on a small tile; says why where they do not."""
    try:
        from caskd.train.loss.triton_passes import TritonPasses

        tile = _tile(device)
        ours = _both_passes(TritonPasses(tile, torch.float32), tile)
    except Exception as error:  # of a compiler, a driver, a linker: nobody lists them all
        _warn(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
        return False
    plain = _both_passes(TorchPasses(torch.float32), _tile(device))
    same = torch.equal(ours[0], plain[0]) and all(
        torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(ours[1:], plain[1:], strict=True)
    )
    if not same:
        _warn("their numbers differ")
    return same


def _tile(device: torch.device) -> Tensor:
    """Logits [n, V] with a tie for the largest, and a cell that was taken out."""
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(_SHAPE, generator=generator)
    logits[1, 4_100] = logits[1, 17] = 40.0
    logits[:, 7] = -torch.inf
    return logits.to(device)


def _both_passes(passes: Passes, tile: Tensor) -> tuple[Tensor, ...]:
    """Argmax, peak and total [n], and the gradient of the live rows."""
    read = passes.read_(tile)
    live = torch.tensor(_LIVE, device=tile.device)
    weight = torch.linspace(0.5, 2.0, len(_LIVE), device=tile.device)
    change = RowChange(
        peak=read.peak[live],
        weight=weight,
        labels=live * 1_000,
        at_label=-weight,
        softcap=30.0,
    )
    return read.argmax, read.peak, read.total, passes.differentiate_(tile, live, change).clone()


def _warn(reason: str) -> None:
    warnings.warn(
        f"the loss runs in plain torch, its Triton kernels do not work here ({reason})",
        RuntimeWarning,
        stacklevel=2,
    )
