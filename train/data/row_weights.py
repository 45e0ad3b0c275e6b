"""Weights of rows by a rule of the caller's own: `train(config, row_weights=RULE)`.

Legend: B examples of a micro-batch, N predicted tokens of a micro-batch.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from caskd.store import StoreBatch, TeacherStore
from caskd.store.errors import UsageError
from caskd.store.format import unknown_fields


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


def check_weighed_fields(rule: RowWeights | None, stores: Iterable[TeacherStore]) -> None:
    """Refuse a rule that reads what a store does not have or does not know.

    Raises:
        UsageError: names the rule, the field and the store.
    """
    for store in stores if rule is not None else ():
        assert rule is not None
        unknown = unknown_fields(store.spec.capture_fields)
        for field in rule.fields:
            if field not in store.row_fields:
                raise UsageError(
                    f"row_weights {rule.name}: field {field!r} is not in the {store.spec.kind} "
                    f"rows of --store {store.name}; expected some of "
                    f"{', '.join(store.row_fields)}; pass a rule of these"
                )
            if field in unknown:
                raise UsageError(
                    f"row_weights {rule.name}: reads {field}, but capture.{unknown[field]} of "
                    f"--store {store.name} is unknown; expected a store that knows it; pass a "
                    "rule without it, or a store that caskd captured"
                )


def checked_weights(name: str, weights: Tensor) -> Tensor:
    """The weights [N] of the rule `name`.

    Raises:
        UsageError: a weight is negative or not finite.
    """
    if not bool(((weights >= 0) & weights.isfinite()).all()):
        raise UsageError(
            f"row_weights {name}: the lowest weight is {float(weights.min())} and the highest "
            f"{float(weights.max())}; expected finite weights of at least 0; correct the rule"
        )
    return weights


def weighed_rows(rule: RowWeights, step: int, batch: StoreBatch) -> WeighedRows:
    """The rows of a batch at a step; 0 is the first step.

    Raises:
        UsageError: the rule's values are not one finite number per row.
    """
    counts = np.diff(batch.row_offsets)
    values = np.asarray(rule.values(step, batch))
    if values.shape != (batch.num_rows,) or not np.isfinite(values).all():
        found = "not finite" if values.shape == (batch.num_rows,) else f"of shape {values.shape}"
        raise UsageError(
            f"row_weights {rule.name}: its values are {found}; expected {batch.num_rows:,} finite "
            "numbers, one per row; correct the rule"
        )
    return WeighedRows(
        torch.from_numpy(values.astype(np.float32, copy=False)),
        torch.from_numpy(np.repeat(np.arange(len(counts)), counts)),
    )
