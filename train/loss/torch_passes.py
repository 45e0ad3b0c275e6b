"""The two passes over a tile's rows in plain torch, in place, a block of rows at a time.

A block is small enough for the caches of a CPU: what follows in it finds the rows still there.

Dimension letters: n rows of a tile, m of them live, V student vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from caskd.train.loss.tile import Outside, RowChange

_BLOCK_BYTES = {"cpu": 2 << 20, "cuda": 64 << 20}
"""Of logits. On a GPU, where nothing stays in a cache, it only bounds the copies."""

_GROUP = 64
"""Columns whose largest is taken before anything is asked of single ones."""


@dataclass(frozen=True)
class TorchPasses:
    """The tile holds exp(logit - peak) between the passes, and then the gradient at its top."""

    operand: torch.dtype
    """The gradient's, as the products take it."""

    def read_(self, tile: Tensor) -> Outside:
        """Read logits [n, V]."""
        parts = []
        for block in tile.split(_block_rows(tile)):
            argmax, peak = first_argmax(block)
            # A row of which nothing is left has a peak all the same, and a total of 0.
            peak = peak.clamp_min(torch.finfo(peak.dtype).min)
            total = block.sub_(peak[:, None]).exp_().sum(1)
            parts.append((argmax, peak, total))
        return Outside(*(torch.cat(columns) for columns in zip(*parts, strict=True)))

    def differentiate_(self, tile: Tensor, live: Tensor, change: RowChange) -> Tensor:
        """Move the live rows to the tile's top and make them gradients.

        A row only ever moves up, so that a block's sources lie at or below its own place and are
        not yet overwritten when their turn comes: no second tile.
        """
        size = _block_rows(tile)
        gradient = tile[: len(live)]
        for start in range(0, len(live), size):
            part = slice(start, start + size)
            block = gradient[part]
            if len(live) < len(tile):
                block.copy_(tile.index_select(0, live[part]))
            if change.softcap is not None:
                _dampen_(block, change.peak[part], change.softcap)
            block.mul_(change.weight[part, None])
        gradient.scatter_add_(1, change.labels[:, None], change.at_label[:, None])
        return gradient.to(self.operand)


def first_argmax(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Column [n] and value [n] of each row's largest logit, ties to the lowest column.

    Torch promises no order among ties, and its argmax is several times slower than amax: the
    largest of each group of columns are compared first, then the columns of one group.
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
    """[n] the first column of values [n, c] with the value wanted [n]; the last of a row of NaN."""
    last = values.shape[1] - 1
    columns = torch.arange(last + 1, device=values.device)
    return torch.where(values == wanted[:, None], columns, last).amin(1)


def _dampen_(block: Tensor, peak: Tensor, softcap: float) -> None:
    """Multiply exp(logit - peak) [n, V] by the softcap's slope, the logit read back from it."""
    ratio = block.log().add_(peak[:, None]).div_(softcap).clamp_(-1, 1)
    block.mul_(ratio.square_().neg_().add_(1))


def _block_rows(tile: Tensor) -> int:
    budget = _BLOCK_BYTES.get(tile.device.type, _BLOCK_BYTES["cuda"])
    return max(1, budget // (tile.element_size() * tile.shape[1]))
