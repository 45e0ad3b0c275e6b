"""Which rows of a step are delegated: those with the highest scores, about a share of all rows.

The whole step would be needed to rank its rows exactly. So scores fall into cells, the counts of
earlier steps give the cell at which the share is reached, and rows of that very cell are chosen at
random. Scores that many rows have in common are shared out in the same way.

Legend: N rows, C cells.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

CELLS = 2048
"""C: cells of scores. Cell c holds scores s with s / (1 + |s|) from 2c/C - 1 to 2(c+1)/C - 1."""

_LARGEST_SCORE = 1e6


@dataclass(frozen=True, eq=False)
class DelegateRows:
    """What the choice reads of each row, besides the student."""

    uniform: Tensor
    """[N] a number in [0, 1) of the row and the step, for rows of one cell."""
    label_logprob: Tensor | None = None
    """[N] log-probability of the label in the teacher; None where the rule does not read it."""
    marked: Tensor | None = None
    """[N] bool: rows that the corpus marks; None where the rule does not read it."""

    def take(self, index: Tensor | slice) -> "DelegateRows":
        """The rows at `index` [n]."""
        label, marked = (
            None if column is None else column[index]
            for column in (self.label_logprob, self.marked)
        )
        return DelegateRows(self.uniform[index], label, marked)


@dataclass(frozen=True)
class Threshold:
    """Rows of higher cells are delegated, and of this cell those below `fraction`."""

    cell: int
    fraction: float


NOTHING = Threshold(CELLS, 0.0)
"""No row is delegated."""


def cells_of(scores: Tensor) -> Tensor:
    """Cell [N] of each score [N], int64; -1 where the score is -inf or nan: never delegated."""
    bounded = scores.clamp(-_LARGEST_SCORE, _LARGEST_SCORE)
    unit = (bounded / (1 + bounded.abs()) + 1) / 2
    cells = (unit * CELLS).floor().clamp(0, CELLS - 1)
    return torch.where(scores > -torch.inf, cells, -1).long()


def chosen_rows(cells: Tensor, uniform: Tensor, threshold: Threshold) -> Tensor:
    """Which rows are delegated, [N] bool.

    Args:
        cells: [N] of `cells_of`.
        uniform: [N] in [0, 1).
        threshold: of the step.
    """
    on_edge = (cells == threshold.cell) & (uniform < threshold.fraction)
    return (cells >= 0) & ((cells > threshold.cell) | on_edge)


CATCH_UP_STEPS = 4
"""Steps over which rows that earlier steps delegated too few, or too many, are made up for."""


def share_to_aim_at(share: float, behind: float, rows_per_step: float) -> float:
    """The share for the next step, which makes up for earlier ones: from 0 to twice the share.

    The first step delegates nothing, and while the student learns its scores fall, so that a
    threshold of earlier steps is too high. In short runs both would lower the share.

    Args:
        share: of the whole run, in (0, 1).
        behind: rows that earlier steps should have delegated and have not.
        rows_per_step: of the last step.
    """
    if rows_per_step <= 0:
        return share
    return min(1.0, max(0.0, min(share + behind / (CATCH_UP_STEPS * rows_per_step), 2 * share)))


def threshold_for(counts: npt.NDArray[np.float64], num_rows: float, share: float) -> Threshold:
    """The threshold at which `share` of `num_rows` rows would be delegated.

    Args:
        counts: [C] rows of each cell; rows without a cell are in `num_rows` alone.
        num_rows: all rows.
        share: from 0 to 1.

    Returns:
        `NOTHING` without rows or share. All rows with a cell where they are fewer than the share.
    """
    if num_rows <= 0 or share <= 0:
        return NOTHING
    above = np.cumsum(counts[::-1])[::-1]  # rows of each cell and all higher ones
    wanted = share * num_rows
    reached = np.flatnonzero(above >= wanted)
    if not len(reached):
        return Threshold(0, 1.0)
    cell = int(reached[-1])
    missing = wanted - (above[cell + 1] if cell + 1 < len(above) else 0.0)
    return Threshold(cell, float(missing / counts[cell]))
