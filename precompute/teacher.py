"""The teacher: tokens in, row fields out.

Legend: N rows of a batch, H hidden, V vocabulary, k cells kept per row.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from caskd.precompute.architecture import SplitModel, check_split, is_same_together
from caskd.precompute.checkpoint import TeacherSource
from caskd.precompute.packing import Arrange, pack, pad
from caskd.precompute.placement import fixed_kernels, load_model, memory_errors, pick_device
from caskd.precompute.topk import Fields, row_fields
from caskd.store.alignment import logit_positions, row_labels
from caskd.store.errors import UsageError
from caskd.store.writer import ShardExample

__all__ = ["Teacher", "TransformersTeacher", "fixed_kernels"]

# Logits of one tile. A CPU wants enough rows for a fast matrix product (64 MB in float32), a GPU
# enough that starting kernels and fetching rows take no time (256 MB).
TILE_LOGITS = {"cpu": 1 << 24, "cuda": 1 << 26}


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
        self, source: TeacherSource, *, vocab_size: int, top_k: int, min_mass: float, device: str
    ) -> None:
        self.device = pick_device(device)
        self.num_columns = min(vocab_size, source.num_ids)
        self.top_k, self.min_mass = top_k, min_mass
        model = load_model(source, self.device)
        self.split = SplitModel(model)
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
            tile = max(1, TILE_LOGITS[hidden.device.type] // self.num_columns)
            tiles = [
                self._tile(hidden[start : start + tile], labels[start : start + tile])
                for start in range(0, len(labels), tile)
            ]
        return {name: np.concatenate([t[name] for t in tiles]) for name in tiles[0]}

    def _tile(self, hidden: torch.Tensor, labels: torch.Tensor) -> Fields:
        logits = self.split.logits(hidden, self.num_columns)
        labels = labels.to(logits.device)
        return row_fields(logits, labels, top_k=self.top_k, min_mass=self.min_mass)
