"""The share of delegated rows over a run: counts of earlier steps give the threshold of a step.

Legend: C cells.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from caskd.store.errors import CorruptError
from caskd.train.delegation.call_loss import Delegation
from caskd.train.delegation.choice import CELLS, NOTHING, threshold_for
from caskd.train.objectives import DelegateRule

HISTORY_DECAY = 0.9
"""Factor of the counts of earlier steps at each step."""


class ShareKeeper:
    """Counts of the scores of all earlier steps, reduced over ranks; part of a checkpoint.

    Every rank adds the same reduced counts, so that all have the same threshold.

    Attributes:
        rule: of the choice.
        share: of the rows to delegate; None for l2d.
        column: of the CALL token.
    """

    def __init__(
        self,
        rule: DelegateRule,
        share: float | None,
        column: int,
        saved: Mapping[str, Any] | None = None,
    ) -> None:
        """Begin without counts, or with those of a checkpoint.

        Raises:
            CorruptError: the saved counts are damaged.
        """
        self.rule = rule
        self.share = share
        self.column = column
        self._counts = np.zeros(CELLS)
        self._num_rows = 0.0
        if saved is not None:
            try:
                for cell, count in saved["cells"]:
                    self._counts[cell] = float(count)
                self._num_rows = float(saved["num_rows"])
            except (KeyError, TypeError, ValueError, IndexError):
                raise CorruptError(
                    "state.json: its counts of delegation scores are damaged; expected cells and "
                    "num_rows; resume from an earlier checkpoint"
                ) from None

    def now(self) -> Delegation:
        """The rule, the column and the threshold of the next step."""
        threshold = NOTHING
        if self.share is not None:
            threshold = threshold_for(self._counts, self._num_rows, self.share)
        return Delegation(self.rule, self.column, threshold)

    def add(self, counts: Sequence[float], num_rows: float) -> None:
        """Add the counts [C] of a step, and its number of rows, both summed over ranks."""
        self._counts = HISTORY_DECAY * self._counts + np.asarray(counts)
        self._num_rows = HISTORY_DECAY * self._num_rows + num_rows

    def to_json(self) -> dict[str, Any]:
        """The counts that are not 0, exactly, and the number of rows."""
        cells = np.flatnonzero(self._counts).tolist()
        pairs = [[cell, self._counts[cell].item()] for cell in cells]
        return {"cells": pairs, "num_rows": self._num_rows}
