"""The algebra of one tile of logits, which is read once and then becomes its own gradient.

With q the student's softmax, t the targets on K (the top-k), r the bucket's target, P = sum t,
u = 1 - w and Q' = the student's mass outside K, one row's gradient with respect to its logits is

    on K          (w + u (P + r)) q_k - u t_k             - w [k = label]
    outside K     (w + u (P + r)) q_j - u r q_j / Q'      - w [j = label]

(r = 0 without a bucket). The cells on K are taken out of the tile and written last. So neither the
student's tail nor these cells come from a difference, which would leave nothing of either once the
tail is below the rounding of the head; and q_j / Q' is a softmax of the rest alone, which has no
underflow however small Q' is.

The passes over whole rows are somebody else's (`Passes`); everything here is [n] or [n, k].

Dimension letters: n rows of a tile, m of them live, k stored cells of a teacher row, V student
vocabulary.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from caskd.train.loss.targets import RowFigures, Targets, tally, teacher_targets
from caskd.train.loss.types import Head, LossRows, LossSums, LossTerms


@dataclass(frozen=True, eq=False)
class Outside:
    """A tile's rows without their top-k cells, read in one pass."""

    argmax: Tensor
    """[n] ties to the lowest id."""
    peak: Tensor
    """[n] the largest logit, finite."""
    total: Tensor
    """[n] sum of exp(logit - peak)."""


@dataclass(frozen=True, eq=False)
class RowChange:
    """How live rows become gradients: exp(logit - peak) * weight, and `at_label` on the label."""

    peak: Tensor
    """[m]."""
    weight: Tensor
    """[m]."""
    labels: Tensor
    """[m]."""
    at_label: Tensor
    """[m]."""
    softcap: float | None
    """Of the head, whose slope the gradient passes; not that of `at_label`."""


class Passes(Protocol):
    """The two passes over whole rows. They may keep what they need in the tile in between."""

    def read_(self, tile: Tensor) -> Outside:
        """Reads logits [n, V], some of them -inf."""

    def differentiate_(self, tile: Tensor, live: Tensor, change: RowChange) -> Tensor:
        """The gradient [m, V] of the rows `live` (ascending) of the tile just read, packed."""


@dataclass(frozen=True, eq=False)
class TileReading:
    """What the gradient needs to know of a tile's rows."""

    factor: Tensor
    """[n] of the row's loss; 0 where the mask drops the row."""
    labels: Tensor
    """[n]."""
    label_logit: Tensor
    """[n]."""
    outside: Outside
    peak: Tensor
    """[n] the largest logit of all."""
    total: Tensor
    """[n] sum of exp(logit - peak) over all logits."""
    cells: "CellReading | None"

    def take(self, index: Tensor) -> "TileReading":
        """The rows at `index`."""
        outside, cells = self.outside, self.cells
        return TileReading(
            self.factor[index],
            self.labels[index],
            self.label_logit[index],
            Outside(outside.argmax[index], outside.peak[index], outside.total[index]),
            self.peak[index],
            self.total[index],
            None if cells is None else CellReading(cells.targets.take(index), cells.logits[index]),
        )


@dataclass(frozen=True, eq=False)
class CellReading:
    """The student's side of a tile's top-k cells."""

    targets: Targets
    logits: Tensor
    """[n, k]."""


def read_tile_(
    logits: Tensor, rows: LossRows, terms: LossTerms, passes: Passes
) -> tuple[LossSums, TileReading]:
    """Sums and per-row figures of logits [n, V], whose top-k cells are taken out."""
    label_logit = logits.gather(1, rows.labels[:, None]).squeeze(1)
    cells = None
    if rows.teacher is not None and rows.teacher.has_distribution:
        targets = teacher_targets(rows.teacher, terms.tail, logits.shape[1], logits.dtype)
        cells = CellReading(targets, logits.gather(1, targets.ids))
        # A row without a teacher has no cells: its filler ids say 0, and nothing is taken out.
        left = cells.logits.masked_fill(targets.present[:, None], -torch.inf)
        logits.scatter_(1, targets.ids, left)
    outside = passes.read_(logits)
    argmax, peak, total = outside.argmax, outside.peak, outside.total
    if cells is not None:
        argmax, peak, total = _with_cells(outside, cells)
    log_total = total.log()
    figures = RowFigures(
        argmax=argmax,
        label_nll=log_total + (peak - label_logit),
        teacher_cross_entropy=(
            None if cells is None else _cross_entropy(cells, outside, peak, log_total)
        ),
    )
    sums, factor = tally(figures, rows, None if cells is None else cells.targets, terms)
    reading = TileReading(factor, rows.labels, label_logit, outside, peak, total, cells)
    return sums, reading


def _with_cells(outside: Outside, cells: CellReading) -> tuple[Tensor, Tensor, Tensor]:
    """Argmax [n] (ties to the lowest id), peak [n] and total [n] of all logits."""
    valid, ids = cells.targets.valid, cells.targets.ids
    logits = cells.logits.masked_fill(~valid, -torch.inf)
    best = logits.amax(1)
    nobody = torch.iinfo(ids.dtype).max
    best_at = torch.where(valid & (logits == best[:, None]), ids, nobody).amin(1)
    lowest = torch.where(best == outside.peak, outside.argmax.minimum(best_at), outside.argmax)
    peak = outside.peak.maximum(best)
    total = outside.total * (outside.peak - peak).exp() + (logits - peak[:, None]).exp().sum(1)
    return torch.where(best > outside.peak, best_at, lowest), peak, total


def _cross_entropy(cells: CellReading, outside: Outside, peak: Tensor, log_total: Tensor) -> Tensor:
    """[n] of the sparse targets and their bucket."""
    targets = cells.targets
    nll = log_total[:, None] + (peak[:, None] - cells.logits)
    inside = torch.where(targets.mass > 0, targets.mass * nll, 0).sum(1)
    tail_nll = log_total + (peak - outside.peak) - outside.total.log()
    return inside + torch.where(targets.tail > 0, targets.tail * tail_nll, 0)


def differentiate_(
    tile: Tensor, live: Tensor, reading: TileReading, head: Head, w: float, passes: Passes
) -> Tensor:
    """The gradient [m, V] with respect to `hidden @ weight.T` of the rows `live` of a tile.

    The rule is in the module's docstring; softcap and scale of the head follow by the chain rule.

    Args:
        reading: of the live rows.
    """
    u = 1 - w
    outside = reading.outside
    factor = reading.factor if head.scale is None else reading.factor * head.scale
    share = (outside.peak - reading.peak).exp() / reading.total
    on_all, on_tail = torch.full_like(factor, w), torch.zeros_like(factor)
    if reading.cells is not None and u > 0:
        targets = reading.cells.targets
        on_all = w + u * (targets.mass.sum(1) + targets.tail)
        on_tail = torch.where(targets.tail > 0, u * targets.tail / outside.total, 0)
    at_label = -w * factor * _slope(reading.label_logit, head.softcap)
    change = RowChange(
        outside.peak, factor * (on_all * share - on_tail), reading.labels, at_label, head.softcap
    )
    gradient = passes.differentiate_(tile, live, change)
    if reading.cells is not None:
        _put_cells_(gradient, reading, factor * on_all, factor * u, at_label, head.softcap)
    return gradient


def _put_cells_(
    gradient: Tensor,
    reading: TileReading,
    on_all: Tensor,
    on_teacher: Tensor,
    at_label: Tensor,
    softcap: float | None,
) -> None:
    """Write the gradient's top-k cells; a filler cell writes what the row's first cell does."""
    assert reading.cells is not None
    targets, logits = reading.cells.targets, reading.cells.logits
    mass = torch.where(targets.valid, targets.mass, targets.mass[:, :1])
    probability = (logits - reading.peak[:, None]).exp() / reading.total[:, None]
    cells = on_all[:, None] * probability - on_teacher[:, None] * mass
    cells = cells * _slope(logits, softcap)
    cells = cells + at_label[:, None] * (targets.ids == reading.labels[:, None])
    gradient.scatter_(1, targets.ids, cells.to(gradient.dtype))


def _slope(logit: Tensor, softcap: float | None) -> Tensor:
    """Derivative of softcap * tanh(x / softcap) with respect to x, from its value."""
    if softcap is None:
        return torch.ones_like(logit)
    return 1 - (logit / softcap).square()
