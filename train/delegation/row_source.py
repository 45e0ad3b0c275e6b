"""From a store's rows to what the choice of delegated rows reads of them."""

from dataclasses import dataclass

import numpy as np
import torch

from caskd.store import StoreBatch
from caskd.store.format import ROW_KINDS, TOPK
from caskd.train.delegation.choice import DelegateRows
from caskd.train.delegation.marks import Marks
from caskd.train.objectives import FACTS, DelegateRule

_COUNTER = 1
"""Second word of Philox's counter: random-* masks of the same seed have 0 there."""


def delegate_fields(rule: DelegateRule, kind: str = TOPK.name) -> tuple[str, ...]:
    """The row fields that a rule reads, besides argmax and num_kept."""
    if rule in ("rho", "gap"):
        return ("label_logit", "logsumexp")
    unacceptable = FACTS.get(rule, rule) == "unacceptable"
    return ROW_KINDS[kind].distribution if unacceptable else ()


@dataclass(frozen=True)
class DelegateReader:
    """Reads `DelegateRows` from a batch of the store.

    A row's random number depends on (seed, step, example, row within the example) alone: not on
    micro-batches, packing or ranks.
    """

    rule: DelegateRule
    seed: int
    marks: Marks | None = None

    def rows(self, step: int, batch: StoreBatch) -> DelegateRows:
        """The rows of a batch at a step; 0 is the first step."""
        counts = np.diff(batch.row_offsets)
        raw = [
            self._stream(step, example).random_raw(count)
            for example, count in zip(batch.example_indices.tolist(), counts.tolist(), strict=True)
        ]
        numbers = (np.concatenate(raw) >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)
        label_logprob = None
        if self.rule in ("rho", "gap"):
            label_logprob = torch.from_numpy(
                batch.column("label_logit").astype(np.float32) - batch.column("logsumexp")
            )
        marked = None if self.marks is None else torch.from_numpy(self.marks.rows(batch))
        return DelegateRows(torch.from_numpy(numbers), label_logprob, marked)

    def _stream(self, step: int, example: int) -> np.random.Philox:
        return np.random.Philox(
            key=np.array([self.seed, example], np.uint64),
            counter=np.array([0, 0, _COUNTER, step + 1], np.uint64),
        )
