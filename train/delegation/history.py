"""The share of delegated rows over a run: counts of earlier steps give the threshold of a step.

Legend: C cells.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from caskd.store.errors import CorruptError, IdentityError
from caskd.train.delegation.call_loss import Delegation
from caskd.train.delegation.choice import (
    CATCH_UP_STEPS,
    CELLS,
    NOTHING,
    share_to_aim_at,
    threshold_for,
)
from caskd.train.delegation.marks import Marks
from caskd.train.objectives import DelegateRule

HISTORY_DECAY = 0.9
"""Largest factor of the counts of earlier steps at each step."""
ENOUGH_ROWS = 4096
"""Rows that give a threshold: counts of older steps, whose scores are others, count less."""


def history_decay(num_rows: float) -> float:
    """The factor of the counts of earlier steps, before those of `num_rows` rows are added."""
    return min(HISTORY_DECAY, max(0.0, 1.0 - num_rows / ENOUGH_ROWS))


class DelegationShare:
    """Counts of the scores of all earlier steps, reduced over ranks; part of a checkpoint.

    Every rank adds the same reduced counts, so that all have the same threshold.

    Attributes:
        rule: of the choice.
        share: of the rows to delegate; None for rules without one.
        column: of the CALL token.
        marks: rows that the corpus marks, for the rules that read them.
    """

    def __init__(
        self,
        rule: DelegateRule,
        share: float | None,
        column: int,
        saved: Mapping[str, Any] | None = None,
        marks: Marks | None = None,
    ) -> None:
        """Begin without counts, or with those of a checkpoint.

        Raises:
            CorruptError: the saved counts are damaged.
            IdentityError: the checkpoint's run had other marks.
        """
        self.rule = rule
        self.share = share
        self.column = column
        self.marks = marks
        self._counts = np.zeros(CELLS)
        self._num_rows = 0.0
        self._behind = 0.0
        self._last_rows = 0.0
        if saved is not None:
            try:
                for cell, count in saved["cells"]:
                    self._counts[cell] = float(count)
                self._num_rows = float(saved["num_rows"])
                # Earlier checkpoints have no such numbers.
                self._behind = float(saved.get("behind", 0.0))
                self._last_rows = float(saved.get("last_rows", 0.0))
                found = saved.get("marks")
            except (AttributeError, KeyError, TypeError, ValueError, IndexError):
                raise CorruptError(
                    "state.json: its counts of delegation scores are damaged; expected cells and "
                    "num_rows",
                    cure="resume from an earlier checkpoint",
                ) from None
            self._check_marks(found)

    def _check_marks(self, found: object) -> None:
        own = None if self.marks is None else self.marks.digest
        if found != own:
            raise IdentityError(
                f"--data: marks other tokens (digest {str(own)[:12]}) than the run to resume "
                f"(digest {str(found)[:12]}); expected the same marks; pass the corpus of that run"
            )

    def now(self) -> Delegation:
        """The rule, the column and the threshold of the next step."""
        threshold = NOTHING
        if self.share is not None:
            aim = share_to_aim_at(self.share, self._behind, self._last_rows)
            threshold = threshold_for(self._counts, self._num_rows, aim)
        return Delegation(self.rule, self.column, threshold)

    def add(self, counts: Sequence[float], num_rows: float, num_delegated: float) -> None:
        """Add the counts [C] of a step, its rows and its delegated rows, all summed over ranks."""
        decay = history_decay(num_rows)
        self._counts = decay * self._counts + np.asarray(counts)
        self._num_rows = decay * self._num_rows + num_rows
        self._last_rows = num_rows
        if self.share is not None:
            # Bounded: a rule that finds too few rows must not owe more and more.
            most = CATCH_UP_STEPS * self.share * num_rows
            behind = self._behind + self.share * num_rows - num_delegated
            self._behind = min(most, max(-most, behind))

    def to_json(self) -> dict[str, Any]:
        """The counts that are not 0, exactly, and the number of rows."""
        cells = np.flatnonzero(self._counts).tolist()
        pairs = [[cell, self._counts[cell].item()] for cell in cells]
        return {
            "cells": pairs,
            "num_rows": self._num_rows,
            "behind": self._behind,
            "last_rows": self._last_rows,
            **({} if self.marks is None else {"marks": self.marks.digest}),
        }
