"""Compare the Triton passes with plain torch on a device, once, before a capture uses them.

A missing or broken compiler then costs speed, but neither the capture nor its numbers.
"""

import warnings
from functools import cache
from importlib.util import find_spec

import torch

from caskd.precompute.rows.passes import Passes, TorchPasses
from caskd.store.errors import reason


@cache
def passes_for(device: torch.device) -> Passes:
    """The fastest passes that work on a device; warns where a GPU has to do without Triton."""
    if device.type != "cuda":
        return TorchPasses()
    if find_spec("triton") is None:
        return TorchPasses(may_wait=False)
    try:
        from caskd.precompute.rows.triton_passes import TritonPasses

        different = _difference(TritonPasses(), device)
    except Exception as error:  # compilers, drivers and linkers raise many kinds
        different = f"{type(error).__name__}: {reason(error)}"
    if different is None:
        return TritonPasses()
    warnings.warn(
        f"the Triton kernels of the capture do not work on this device ({different}); the capture "
        "uses plain torch, which is slower",
        RuntimeWarning,
        stacklevel=2,
    )
    return TorchPasses(may_wait=False)


def _difference(passes: Passes, device: torch.device) -> str | None:
    """Which result of a small tile differs from plain torch's; None where none does."""
    generator = torch.Generator().manual_seed(0)
    logits = (4 * torch.randn(6, 5_003, generator=generator)).bfloat16()
    logits[:, 100:1_000:100] = 40.0 - torch.arange(9)  # without ties: topk orders none
    logits[4, 5_002], logits[5, 17] = torch.inf, torch.nan
    logits = logits.to(device)
    labels = torch.arange(6, device=device) * 1_000
    results = []
    for each in (passes, TorchPasses()):
        tile = each.prepared(logits)
        maxima, finite = each.maxima(tile)
        values, ids = tile.float()[:4].topk(9, dim=1)
        at_label = tile[:4].gather(1, labels[:4, None]).squeeze(1).float()
        rest = each.rest(tile[:4], values, ids, at_label, labels[:4])
        results.append((maxima[:4], finite, rest.label_rank, rest.outside))
    names = ("maxima", "finite rows", "label ranks", "sums")
    for name, ours, plain in zip(names, *results, strict=True):
        if not torch.allclose(ours.double(), plain.double(), rtol=1e-5):
            return f"their {name} differ from torch's"
    return None
