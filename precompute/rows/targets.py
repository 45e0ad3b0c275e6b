"""What is kept of a row: the largest logits, or draws. One object for each kind of store.

Legend: N rows of a batch, R rows of a tile, V vocabulary, n random numbers per row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from caskd.precompute.rows.sampling import filler_draws, sampled_fields, uniforms
from caskd.precompute.rows.topk import Fields, filler_rows, row_fields
from caskd.store.format import StoreSpec
from caskd.store.write import ShardExample

Numbers = npt.NDArray[np.float64]


class RowRule(Protocol):
    """How rows of a store come of logits."""

    def filler(self, num_rows: int) -> Fields:
        """Rows without a teacher."""

    def numbers(self, examples: Sequence[ShardExample]) -> Numbers:
        """Random numbers [N, n] of a batch's rows; n is 0 where nothing is drawn."""

    def fields(self, logits: Tensor, labels: Tensor, numbers: Numbers) -> Fields:
        """Row fields of a tile, from logits [R, V], labels [R] and its part of the numbers."""


@dataclass(frozen=True)
class KeepTopK:
    """The largest logits of each row."""

    top_k: int
    min_mass: float

    def filler(self, num_rows: int) -> Fields:
        """Rows without a teacher."""
        return filler_rows(num_rows, self.top_k)

    def numbers(self, examples: Sequence[ShardExample]) -> Numbers:
        """Nothing is drawn."""
        return np.empty((sum(example.row_count for example in examples), 0))

    def fields(self, logits: Tensor, labels: Tensor, numbers: Numbers) -> Fields:
        """Row fields of a tile."""
        return row_fields(logits, labels, top_k=self.top_k, min_mass=self.min_mass)


@dataclass(frozen=True)
class KeepDraws:
    """Draws from the whole distribution of each row."""

    num_samples: int
    seed: int

    def filler(self, num_rows: int) -> Fields:
        """Rows without a teacher."""
        return filler_draws(num_rows, self.num_samples)

    def numbers(self, examples: Sequence[ShardExample]) -> Numbers:
        """One number for each draw."""
        return uniforms(examples, self.num_samples, self.seed)

    def fields(self, logits: Tensor, labels: Tensor, numbers: Numbers) -> Fields:
        """Row fields of a tile."""
        return sampled_fields(logits, labels, numbers)


def row_rule(spec: StoreSpec) -> RowRule:
    """What the rows of a planned store keep."""
    capture: Any = spec.identity["capture"]
    if spec.kind == "sampled":
        return KeepDraws(capture["num_samples"], capture["sample_seed"])
    return KeepTopK(capture["top_k"], capture["min_mass"])
