"""The teacher: tokens in, row fields out.

Legend: N rows of a batch, H hidden, V vocabulary, k cells kept per row.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch

from caskd.models import (
    Arrange,
    SplitModel,
    check_split,
    fixed_kernels,
    is_same_together,
    memory_errors,
    pack,
    pad,
    pick_device,
)
from caskd.precompute.rows import Fields, Numbers, RowRule
from caskd.precompute.teacher.loading import load_model
from caskd.precompute.teacher.source import FLAG, TeacherSource
from caskd.store.corpus import logit_positions, row_labels
from caskd.store.errors import UsageError
from caskd.store.write import ShardExample

__all__ = ["Teacher", "TransformersTeacher", "fixed_kernels"]

# Bytes of one product with the head: enough rows for its speed. On a CPU, glibc keeps blocks below
# 32 MB for the next tile, and has larger ones cleared by the system each time.
TILE_BYTES = {"cpu": 28 << 20, "cuda": 1 << 28}
MIN_TILE_ROWS = 128
# Logits that are widened and passed over at a time: 4 MB in float32 stay in a CPU's cache.
SLICE_LOGITS = {"cpu": 1 << 20, "cuda": 1 << 26}


class Teacher(Protocol):
    """Whatever can say what it expects at each response token: a model here, or one served."""

    def rows(self, examples: Sequence[ShardExample]) -> Fields:
        """Row fields of all examples, concatenated in their order.

        Raises:
            MemoryError: the batch is too large; a smaller one may do.
        """


class TransformersTeacher:
    """A frozen transformers causal LM on one device.

    Raises:
        UsageError: no CUDA where it was asked for, or a checkpoint that lacks weights.
    """

    def __init__(
        self, source: TeacherSource, *, vocab_size: int, rule: RowRule, device: str
    ) -> None:
        self.device = pick_device(device)
        self.num_columns = min(vocab_size, source.num_ids)
        self.rule = rule
        model = load_model(source, self.device)
        self.split = SplitModel(model, FLAG)
        check_split(model, self.split, self.num_columns)
        self.arrange: Arrange = pad
        if source.attention.startswith("flash") and self._agrees(pack):
            self.arrange = pack
        elif not self._agrees(pad):
            raise UsageError(
                f"teacher architecture {type(model).__name__} answers otherwise in a batch than "
                "alone, expected the same: give another --teacher"
            )

    def _agrees(self, arrange: Arrange) -> bool:
        """Whether examples arranged so give what each gives alone."""
        return is_same_together(self.split, arrange, self.num_columns)

    @torch.inference_mode()
    def rows(self, examples: Sequence[ShardExample]) -> Fields:
        """Row fields of all examples, concatenated in their order."""
        with memory_errors():
            places = [logit_positions(example.is_response) for example in examples]
            # The token of the last row is only ever a label: the teacher need not see it.
            shown = [e.token_ids[: p[-1] + 1] for e, p in zip(examples, places, strict=True)]
            hidden = self.split.hidden_rows(self.arrange(shown), places)
            labels = torch.from_numpy(
                np.concatenate([row_labels(e.token_ids, e.is_response) for e in examples])
                .astype(np.int64)
            )  # fmt: skip
            numbers = self.rule.numbers(examples)
            row_bytes = self.num_columns * hidden.element_size()
            tile = max(MIN_TILE_ROWS, TILE_BYTES[hidden.device.type] // row_bytes)
            parts = [
                fields
                for start in range(0, len(labels), tile)
                for fields in self._tile(
                    hidden[start : start + tile],
                    labels[start : start + tile],
                    numbers[start : start + tile],
                )
            ]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _tile(
        self, hidden: torch.Tensor, labels: torch.Tensor, numbers: Numbers
    ) -> Iterator[Fields]:
        """Row fields of hidden states [N, H], a few rows at a time."""
        product = self.split.head(hidden)
        few = max(1, SLICE_LOGITS[product.device.type] // self.num_columns)
        for start in range(0, len(labels), few):
            logits = self.split.adjusted(product[start : start + few], self.num_columns)
            own = labels[start : start + few].to(logits.device)
            yield self.rule.fields(logits, own, numbers[start : start + few])
