"""The pointwise part of the fused loss: one tile of logits is read, then becomes its own gradient.

With q the student's softmax, t the targets on K (the top-k), r the bucket's target, P = sum t,
u = 1 - w and R = r / (student's mass outside K), one row's gradient with respect to its logits is

    on K          (w + u (P + r)) q_k - u t_k          - w [k = label]
    outside K     (w + u (P + r - R)) q_j              - w [j = label]

Without a bucket r = R = 0 and one formula holds everywhere. With one, the cells on K are taken out
of the tile and written last: neither the student's tail mass nor these cells come from a
difference, which would leave nothing of either once the tail is below the rounding of the head.

Dimension letters: n rows of a tile, k stored cells of a teacher row, V student vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from caskd.train.loss_targets import RowFigures, Targets, tally, teacher_targets
from caskd.train.loss_types import Head, LossRows, LossSums, LossTerms

_BLOCK_ROWS = 16
"""Rows moved or dampened at once, so that the copy is a sliver of a tile."""


@dataclass(frozen=True, eq=False)
class TileReading:
    """What the gradient needs to know of a tile's rows once its logits are gone."""

    sums: LossSums
    factor: Tensor
    """[n] of the row's loss; 0 where the mask drops the row."""
    labels: Tensor
    """[n]."""
    label_logit: Tensor
    """[n]."""
    peak: Tensor
    """[n] the largest logit."""
    total: Tensor
    """[n] sum of exp(logit - peak)."""
    cells: "CellReading | None"

    def take(self, index: Tensor) -> "TileReading":
        """The rows at `index`; the sums stay those of the tile."""
        return TileReading(
            self.sums,
            self.factor[index],
            self.labels[index],
            self.label_logit[index],
            self.peak[index],
            self.total[index],
            None if self.cells is None else self.cells.take(index),
        )


@dataclass(frozen=True, eq=False)
class CellReading:
    """The student's side of a tile's top-k cells."""

    targets: Targets
    logits: Tensor
    """[n, k]."""
    exponentials: Tensor
    """[n, k] exp(logit - peak)."""
    outside: Tensor | None
    """[n] sum of exp(logit - peak) outside the top-k; None when no bucket asks for it."""

    def take(self, index: Tensor) -> "CellReading":
        """The rows at `index`."""
        outside = None if self.outside is None else self.outside[index]
        targets = self.targets.take(index)
        return CellReading(targets, self.logits[index], self.exponentials[index], outside)

    def tail_ratio(self, total: Tensor) -> Tensor:
        """[n] the bucket's target over the student's mass outside the top-k (R above).

        A student tail that underflows counts as the smallest normal number, which ends the gradient
        outside K there and leaves the one on K exact.
        """
        if self.outside is None:
            return torch.zeros_like(total)
        floor = torch.finfo(total.dtype).tiny
        ratio = self.targets.tail * (total / self.outside.clamp_min(floor))
        return torch.where(self.targets.tail > 0, ratio, 0)


def read_tile_(logits: Tensor, rows: LossRows, terms: LossTerms) -> TileReading:
    """Sums and per-row figures of logits [n, V], which become exp(logit - peak).

    Under the bucket the tile's top-k cells are left at zero.
    """
    argmax = logits.argmax(1)
    peak = logits.gather(1, argmax[:, None])
    label_logit = logits.gather(1, rows.labels[:, None]).squeeze(1)
    targets, cell_logits = None, None
    if rows.teacher is not None and rows.teacher.has_distribution:
        targets = teacher_targets(rows.teacher, terms.tail, logits.shape[1], logits.dtype)
        cell_logits = logits.gather(1, targets.ids)
    logits.sub_(peak).exp_()
    peak = peak.squeeze(1)
    cells, total = None, None
    if targets is not None and cell_logits is not None:
        cells, total = _take_cells_(logits, targets, cell_logits, peak, terms)
    if total is None:
        total = logits.sum(1)
    log_total = total.log()
    figures = RowFigures(
        argmax=argmax,
        label_nll=log_total + (peak - label_logit),
        teacher_cross_entropy=None if cells is None else _cross_entropy(cells, peak, log_total),
    )
    sums, factor = tally(figures, rows, targets, terms)
    return TileReading(sums, factor, rows.labels, label_logit, peak, total, cells)


def _take_cells_(
    tile: Tensor, targets: Targets, cell_logits: Tensor, peak: Tensor, terms: LossTerms
) -> tuple[CellReading, Tensor | None]:
    """The cells of exp(logit - peak), and the rows' total where it comes from cells and rest."""
    exponentials = (cell_logits - peak[:, None]).exp()
    if terms.tail != "bucket":
        return CellReading(targets, cell_logits, exponentials, None), None
    # A row without a teacher has no cells: its filler ids all say 0 and nothing is taken out.
    tile.scatter_(1, targets.ids, exponentials.masked_fill(targets.present[:, None], 0))
    outside = tile.sum(1)
    total = outside + exponentials.masked_fill(~targets.valid, 0).sum(1)
    return CellReading(targets, cell_logits, exponentials, outside), total


def _cross_entropy(cells: CellReading, peak: Tensor, log_total: Tensor) -> Tensor:
    """[n] of the sparse targets and their bucket."""
    targets = cells.targets
    nll = log_total[:, None] + (peak[:, None] - cells.logits)
    inside = torch.where(targets.mass > 0, targets.mass * nll, 0).sum(1)
    if cells.outside is None:
        return inside
    floor = torch.finfo(log_total.dtype).tiny
    tail_nll = log_total - cells.outside.clamp_min(floor).log()
    return inside + targets.tail * tail_nll


def close_up_(tile: Tensor, live: Tensor) -> None:
    """Move the rows `live` (ascending) of tile [n, V] to its top, without a second tile.

    A row only ever moves up, so a block's sources lie at or below its own place and are not yet
    overwritten when their turn comes.
    """
    if len(live) == len(tile):
        return
    for start in range(0, len(live), _BLOCK_ROWS):
        block = live[start : start + _BLOCK_ROWS]
        tile[start : start + len(block)] = tile[block]


def differentiate_(tile: Tensor, reading: TileReading, head: Head, w: float) -> Tensor:
    """Turn a tile of exponentials [n, V] into the gradient with respect to `hidden @ weight.T`.

    Every row must be live. The rule is in the module's docstring; softcap and scale of the head
    follow by the chain rule.
    """
    cells, u = reading.cells, 1 - w
    factor = reading.factor if head.scale is None else reading.factor * head.scale
    if head.softcap is not None:
        _dampen_(tile, reading.peak, head.softcap)
    weight = torch.full_like(factor, w)
    if cells is not None and u > 0:
        on_cells = w + u * (cells.targets.mass.sum(1) + cells.targets.tail)
        weight = on_cells - u * cells.tail_ratio(reading.total)
    else:
        on_cells = weight
    tile.mul_((factor * weight / reading.total)[:, None])
    if cells is not None:
        _put_cells_(tile, cells, reading.total, on_cells, u, factor, head.softcap)
    at_label = -w * factor * _slope(reading.label_logit, head.softcap)
    return tile.scatter_add_(1, reading.labels[:, None], at_label[:, None])


def _put_cells_(
    tile: Tensor,
    cells: CellReading,
    total: Tensor,
    on_cells: Tensor,
    u: float,
    factor: Tensor,
    softcap: float | None,
) -> None:
    """Give the tile's top-k cells their gradient: written under a bucket, added to otherwise."""
    targets = cells.targets
    scale = factor[:, None] * _slope(cells.logits, softcap)
    if cells.outside is None:
        tile.scatter_add_(1, targets.ids, -u * targets.mass * scale)
        return
    # Filler cells stand at the first cell's id and must write the first cell's value.
    mass = torch.where(targets.valid, targets.mass, targets.mass[:, :1])
    probability = cells.exponentials / total[:, None]
    tile.scatter_(1, targets.ids, (on_cells[:, None] * probability - u * mass) * scale)


def _slope(logit: Tensor, softcap: float | None) -> Tensor:
    """Derivative of softcap * tanh(x / softcap) with respect to x, from its value."""
    if softcap is None:
        return torch.ones_like(logit)
    return 1 - (logit / softcap).square()


def _dampen_(tile: Tensor, peak: Tensor, softcap: float) -> None:
    """Multiply exp(logit - peak) [n, V] by the softcap's slope, the logit read back from it."""
    for block, top in zip(tile.split(_BLOCK_ROWS), peak.split(_BLOCK_ROWS), strict=True):
        ratio = block.log().add_(top[:, None]).div_(softcap).clamp_(-1, 1)
        block.mul_(ratio.square_().neg_().add_(1))
