"""Weights of rows by a rule of the caller's own: `train(config, row_weights=RULE)`.

Legend: B examples of a micro-batch, N predicted tokens of a micro-batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from caskd.store import StoreBatch


@dataclass(frozen=True, eq=False)
class WeighedRows:
    """What a rule knows of the rows of a micro-batch before the student's forward."""

    values: Tensor
    """[N] float32, the rule's value of each row."""
    answers: Tensor
    """[N] int64 ascending: which of the B examples the row belongs to."""


class RowWeights(Protocol):
    """A rule that gives each row a weight, which multiplies the loss that the objective gives it.

    The loss is divided by the same count as without the rule.
    """

    @property
    def name(self) -> str:
        """Recorded in the run; a resumed run must have the same."""

    @property
    def fields(self) -> Sequence[str]:
        """Row fields of the store that `values` reads."""

    @property
    def needs_student(self) -> bool:
        """Whether `weights` reads where the student is right: one more product with the head."""

    def values(self, step: int, batch: StoreBatch) -> npt.NDArray[np.float32]:
        """Value [N] of each row from the store, finite; step 0 is the first.

        Called once for each micro-batch of this rank, in order.
        """

    def weights(self, rows: WeighedRows, right: Tensor | None) -> Tensor:
        """Weight [N] of each row, finite and at least 0.

        Called once for each micro-batch, in order, without gradients.

        Args:
            rows: of the micro-batch.
            right: [N] bool, whether the student's argmax is the label; None without
                `needs_student`.
        """


def weighed_rows(rule: RowWeights, step: int, batch: StoreBatch) -> WeighedRows:
    """The rows of a batch at a step; 0 is the first step."""
    counts = np.diff(batch.row_offsets)
    return WeighedRows(
        torch.from_numpy(rule.values(step, batch).astype(np.float32, copy=False)),
        torch.from_numpy(np.repeat(np.arange(len(counts)), counts)),
    )
