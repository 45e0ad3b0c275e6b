"""The targets of a store: what a row keeps of the teacher's logits, one class per kind of store.

Legend: N rows of a batch, R rows of a tile, V vocabulary, n random numbers per row.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from caskd.precompute.rows.log_probs import log_prob_counts
from caskd.precompute.rows.sampling import (
    counted_fields,
    filler_draws,
    head_columns,
    head_fields,
    sampled_columns,
    sampled_fields,
    uniforms,
)
from caskd.precompute.rows.topk import (
    Columns,
    Fields,
    filler_rows,
    row_columns,
    row_fields,
    stored_fields,
)
from caskd.store.format import HEAD_SAMPLED, SAMPLED, TOPK, StoreSpec
from caskd.store.write import ShardExample

Numbers = npt.NDArray[np.float64]


class Reduction(Protocol):
    """Reduces logits to row fields."""

    def numbers(self, examples: Sequence[ShardExample]) -> Numbers:
        """Random numbers [N, n] for the rows of a batch; n is 0 where nothing is drawn."""

    def columns(self, logits: Tensor, labels: Tensor, numbers: Tensor) -> Columns:
        """Reduce a tile to its rows, all on one device, which nothing waits for.

        Args:
            logits: [R, V] of any float dtype.
            labels: [R] int64.
            numbers: [R, n] float64.
        """

    def stored(self, columns: Fields) -> Fields:
        """Row fields from columns that were copied to the host."""


class Targets(Reduction, Protocol):
    """Computes the row fields of a store from logits."""

    def filler(self, num_rows: int) -> Fields:
        """Rows without a teacher."""

    def fields(self, logits: Tensor, labels: Tensor, numbers: Numbers) -> Fields:
        """Row fields of a tile at once, for a backend that may wait for its logits."""

    def counts(self, rows: Fields, spec: StoreSpec) -> dict[str, int]:
        """What a commit record counts of a shard's rows; nothing of an ordinary capture."""


@dataclass(frozen=True)
class TopKTargets:
    """The largest logits of each row."""

    top_k: int
    min_mass: float

    def filler(self, num_rows: int) -> Fields:
        """Rows without a teacher."""
        return filler_rows(num_rows, self.top_k)

    def numbers(self, examples: Sequence[ShardExample]) -> Numbers:
        """No numbers [N, 0]: nothing is drawn."""
        return np.empty((sum(example.row_count for example in examples), 0))

    def columns(self, logits: Tensor, labels: Tensor, numbers: Tensor) -> Columns:
        """Reduce a tile."""
        return row_columns(logits, labels, top_k=self.top_k, min_mass=self.min_mass)

    def stored(self, columns: Fields) -> Fields:
        """In the dtypes of a store."""
        return stored_fields(columns)

    def fields(self, logits: Tensor, labels: Tensor, numbers: Numbers) -> Fields:
        """Row fields of a tile."""
        return row_fields(logits, labels, top_k=self.top_k, min_mass=self.min_mass)

    def counts(self, rows: Fields, spec: StoreSpec) -> dict[str, int]:
        """Ties, caps and clamps of log-probabilities."""
        served = spec.capture_fields["values"] == "log-probs"
        return log_prob_counts(rows, self.top_k) if served else {}


@dataclass(frozen=True)
class SampledTargets:
    """Draws from the whole distribution of each row."""

    num_samples: int
    seed: int

    def filler(self, num_rows: int) -> Fields:
        """Rows without a teacher."""
        return filler_draws(num_rows, self.num_samples)

    def numbers(self, examples: Sequence[ShardExample]) -> Numbers:
        """One random number per draw."""
        return uniforms(examples, self.num_samples, self.seed)

    def columns(self, logits: Tensor, labels: Tensor, numbers: Tensor) -> Columns:
        """Reduce a tile."""
        return sampled_columns(logits, labels, numbers)

    def stored(self, columns: Fields) -> Fields:
        """Count the draws."""
        return counted_fields(columns)

    def fields(self, logits: Tensor, labels: Tensor, numbers: Numbers) -> Fields:
        """Row fields of a tile."""
        return sampled_fields(logits, labels, numbers)

    def counts(self, rows: Fields, spec: StoreSpec) -> dict[str, int]:
        """Nothing."""
        return {}


@dataclass(frozen=True)
class HeadSampledTargets(SampledTargets):
    """The likeliest ids of each row, and draws from the others."""

    head: int

    def filler(self, num_rows: int) -> Fields:
        """Rows without a teacher."""
        return filler_draws(num_rows, self.head + self.num_samples, HEAD_SAMPLED)

    def columns(self, logits: Tensor, labels: Tensor, numbers: Tensor) -> Columns:
        """Reduce a tile."""
        return head_columns(logits, labels, numbers, self.head)

    def stored(self, columns: Fields) -> Fields:
        """Count the draws."""
        return head_fields(columns)

    def fields(self, logits: Tensor, labels: Tensor, numbers: Numbers) -> Fields:
        """Row fields of a tile."""
        columns = self.columns(logits, labels, torch.from_numpy(numbers))
        return self.stored({name: values.cpu().numpy() for name, values in columns.items()})


_TARGETS_OF_KIND: Mapping[str, Callable[[Mapping[str, Any]], Targets]] = {
    TOPK.name: lambda capture: TopKTargets(capture["top_k"], capture["min_mass"]),
    SAMPLED.name: lambda capture: SampledTargets(capture["num_samples"], capture["sample_seed"]),
    HEAD_SAMPLED.name: lambda capture: HeadSampledTargets(
        capture["num_samples"], capture["sample_seed"], capture["head"]
    ),
}


def targets_of(spec: StoreSpec) -> Targets:
    """The targets that the identity of a planned store defines."""
    return targets_from({**spec.identity["capture"], "kind": spec.kind})


def targets_from(capture: Mapping[str, Any]) -> Targets:
    """The targets that these fields of `identity.capture` define."""
    return _TARGETS_OF_KIND[capture["kind"]](capture)
