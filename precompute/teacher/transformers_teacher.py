"""A transformers model in this process as a teacher: tokens in, row fields out.

Legend: N rows of a batch, H hidden, V vocabulary, k cells kept per row.
"""

import platform
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from importlib.metadata import version
from typing import Any

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
from caskd.precompute.rows import Fields, Numbers, Targets
from caskd.precompute.teacher.loading import load_model
from caskd.precompute.teacher.source import FLAG, TransformersCheckpoint
from caskd.store.corpus import logit_positions, row_labels
from caskd.store.errors import UsageError
from caskd.store.write import ShardExample

PACKAGES = ("torch", "transformers", "tokenizers")
# Bytes of one product with the head: enough rows to run at full speed. On a CPU, glibc reuses
# blocks below 32 MB for the next tile; the system clears larger ones each time.
TILE_BYTES = {"cpu": 28 << 20, "cuda": 1 << 28}
MIN_TILE_ROWS = 128
# Logits that are widened and reduced at a time: 4 MB in float32 stay in a CPU's cache.
SLICE_LOGITS = {"cpu": 1 << 20, "cuda": 1 << 27}


class TransformersTeacher:
    """A frozen transformers causal LM on one device, or laid out over several.

    Raises:
        UsageError: the device does not exist, the checkpoint does not load, or its architecture is
            not supported.
    """

    def __init__(
        self,
        checkpoint: TransformersCheckpoint,
        *,
        vocab_size: int,
        targets: Targets,
        device: str,
        deterministic: bool = False,
    ) -> None:
        self.device = pick_device(device)
        self.num_columns = min(vocab_size, checkpoint.num_ids)
        self.targets = targets
        with ExitStack() as opened:
            opened.enter_context(fixed_kernels(deterministic))
            model = load_model(checkpoint, self.device)
            self.split = SplitModel(model, FLAG)
            check_split(model, self.split, self.num_columns)
            self.arrange = self._pick_arrangement(checkpoint.attention, type(model).__name__)
            self._open = opened.pop_all()

    def _pick_arrangement(self, attention: str, architecture: str) -> Arrange:
        """Pack examples end to end where flash attention keeps them apart, else pad them."""
        if attention.startswith("flash") and self._keeps_apart(pack):
            return pack
        if not self._keeps_apart(pad):
            raise UsageError(
                f"--teacher: architecture {architecture} produces different hidden states in a "
                "batch than one example at a time; expected padding to have no effect; use another "
                "--teacher"
            )
        return pad

    def _keeps_apart(self, arrange: Arrange) -> bool:
        """Whether examples arranged together give the hidden states that each gives alone."""
        return is_same_together(self.split, arrange, self.num_columns)

    def describe(self) -> dict[str, Any]:
        """Package versions, device and threads."""
        gpu, cpu = self.device.type == "cuda", platform.machine()
        name = torch.cuda.get_device_name(self.device) if gpu else cpu
        return {
            "packages": {package: version(package) for package in PACKAGES},
            "device": f"{self.device.type} {name}",
            "num_threads": torch.get_num_threads(),
        }

    def close(self) -> None:
        """Restore the kernels that torch used before."""
        self._open.close()

    @torch.inference_mode()
    def rows(self, examples: Sequence[ShardExample]) -> Fields:
        """Compute the row fields of all examples, concatenated in their order."""
        with memory_errors():
            positions = [logit_positions(example.is_response) for example in examples]
            # The token of the last row is a label only: the forward pass does not need it.
            inputs = [e.token_ids[: p[-1] + 1] for e, p in zip(examples, positions, strict=True)]
            hidden = self.split.hidden_rows(self.arrange(inputs), positions)
            labels = torch.from_numpy(
                np.concatenate([row_labels(e.token_ids, e.is_response) for e in examples])
                .astype(np.int64)
            )  # fmt: skip
            numbers = self.targets.numbers(examples)
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
        """Compute the row fields of hidden states [N, H], a slice of rows at a time."""
        product = self.split.head(hidden)
        num_rows = max(1, SLICE_LOGITS[product.device.type] // self.num_columns)
        for start in range(0, len(labels), num_rows):
            part = slice(start, start + num_rows)
            logits = self.split.adjusted(product[part], self.num_columns)
            yield self.targets.fields(logits, labels[part].to(logits.device), numbers[part])
