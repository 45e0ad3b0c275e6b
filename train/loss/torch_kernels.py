"""`TileKernels` in plain torch: in place, one block of rows at a time.

A block is small enough for a CPU's caches, so that each operation finds the rows still there.

Dimension letters: n rows of a tile, m of them live, V student vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from caskd.train.loss.tile import GradTerms, NonTopK

_BLOCK_BYTES = {"cpu": 2 << 20, "cuda": 64 << 20}
"""Logits of a block. On a GPU, where caches hold no block, the size only bounds the copies."""

_GROUP = 64
"""Columns of which `first_argmax` takes the largest first."""

_LEAST_LOG = -1000.0
"""Below the logarithm of every positive float64."""


@dataclass(frozen=True)
class TorchKernels:
    """The tile holds exp(logit - peak) after `read_`; at the end its top rows are the gradient."""

    operand: torch.dtype
    """Of the gradient, as the matrix products take it."""
    entropy: bool = False
    """Also read `NonTopK.moment`."""

    def read_(self, tile: Tensor) -> NonTopK:
        """Read logits [n, V]."""
        parts = []
        for block in tile.split(_block_rows(tile)):
            argmax, peak = first_argmax(block)
            # A row whose cells are all -inf must have a finite peak; its total is 0.
            peak = peak.clamp_min(torch.finfo(peak.dtype).min)
            total = block.sub_(peak[:, None]).exp_().sum(1)
            moment = (torch.xlogy(block, block).sum(1),) if self.entropy else ()
            parts.append((argmax, peak, total, *moment))
        return NonTopK(*(torch.cat(columns) for columns in zip(*parts, strict=True)))

    def differentiate_(self, tile: Tensor, live: Tensor, terms: GradTerms) -> Tensor:
        """Move the live rows to the top of the tile and turn them into gradients.

        A row only moves up. So the sources of a block lie at or below the block and are not yet
        overwritten when it is processed; no second tile is needed.
        """
        size = _block_rows(tile)
        gradient = tile[: len(live)]
        for start in range(0, len(live), size):
            part = slice(start, start + size)
            block = gradient[part]
            if len(live) < len(tile):
                block.copy_(tile.index_select(0, live[part]))
            weight = terms.weight[part, None]
            if terms.log_weight is not None:
                # A removed cell has the logarithm -inf; times its 0 that would be nan.
                logs = block.log().clamp_min_(_LEAST_LOG)
                weight = logs.mul_(terms.log_weight[part, None]).add_(weight)
            if terms.softcap is not None:
                _dampen_(block, terms.peak[part], terms.softcap)
            block.mul_(weight)
        gradient.scatter_add_(1, terms.labels[:, None], terms.at_label[:, None])
        return gradient.to(self.operand)


def first_argmax(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Column [n] and value [n] of each row's largest logit, ties to the lowest column.

    Torch promises no order among ties, and its argmax is several times slower than amax. So the
    maxima of groups of columns are compared first, then the columns of one group.
    """
    width = logits.shape[1] // _GROUP * _GROUP
    groups = logits[:, :width].unflatten(1, (-1, _GROUP)).amax(2)
    if width < logits.shape[1]:
        groups = torch.cat([groups, logits[:, width:].amax(1, keepdim=True)], dim=1)
    first = _first_of(groups, groups.amax(1))[:, None] * _GROUP
    columns = first + torch.arange(_GROUP, device=logits.device)
    values = logits.gather(1, columns.clamp_max(logits.shape[1] - 1))
    peak = values.amax(1)
    return first.squeeze(1) + _first_of(values, peak), peak


def _first_of(values: Tensor, wanted: Tensor) -> Tensor:
    """[n] first column of values [n, c] that equals wanted [n]; the last column of a NaN row."""
    last = values.shape[1] - 1
    columns = torch.arange(last + 1, device=values.device)
    return torch.where(values == wanted[:, None], columns, last).amin(1)


def _dampen_(block: Tensor, peak: Tensor, softcap: float) -> None:
    """Multiply exp(logit - peak) [n, V] by the softcap's slope; the logit is its logarithm."""
    ratio = block.log().add_(peak[:, None]).div_(softcap).clamp_(-1, 1)
    block.mul_(ratio.square_().neg_().add_(1))


def _block_rows(tile: Tensor) -> int:
    budget = _BLOCK_BYTES.get(tile.device.type, _BLOCK_BYTES["cuda"])
    return max(1, budget // (tile.element_size() * tile.shape[1]))
