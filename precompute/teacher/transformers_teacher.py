"""A transformers model in this process as a teacher: tokens in, row fields out.

Legend: N rows of a batch, H hidden, V vocabulary, k cells kept per row.
"""

import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from caskd.models import (
    Arrange,
    BatchGroups,
    SplitModel,
    arranged_groups,
    check_causal,
    check_split,
    fixed_kernels,
    memory_errors,
    pack,
    pad,
    peak_process_bytes,
    pick_device,
    to_device,
)
from caskd.precompute.checkpoints import FLAG, TransformersCheckpoint, load_model
from caskd.precompute.rows import Columns, Reduction, Targets
from caskd.precompute.teacher.host_transfer import CopiedFields
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
            _check_width(self.split, checkpoint)
            check_split(model, self.split, self.num_columns)
            check_causal(self.split, f"{FLAG} {checkpoint.name}", num_ids=self.num_columns)
            name = f"{checkpoint.name} ({type(model).__name__})"
            self.arrange, self.groups = self._pick_arrangement(checkpoint.attention, name)
            self._open = opened.pop_all()

    def _pick_arrangement(self, attention: str, name: str) -> tuple[Arrange, BatchGroups]:
        """Pack examples end to end where flash attention keeps them apart, else pad them."""
        if attention.startswith("flash"):
            groups = arranged_groups(self.split, pack, self.num_columns, name)
            if groups.is_same_when_short():
                return pack, groups
        return pad, arranged_groups(self.split, pad, self.num_columns, name)

    def describe(self) -> dict[str, Any]:
        """Package versions, device and threads."""
        gpu, cpu = self.device.type == "cuda", platform.machine()
        name = torch.cuda.get_device_name(self.device) if gpu else cpu
        return {
            "packages": {package: version(package) for package in PACKAGES},
            "device": f"{self.device.type} {name}",
            "num_threads": torch.get_num_threads(),
        }

    def peak_memory(self) -> tuple[str, int]:
        """Peak bytes so far: of the fullest GPU, or of this process."""
        if self.device.type == "cuda":
            peaks = map(torch.cuda.max_memory_allocated, range(torch.cuda.device_count()))
            return "gpu", max(peaks)
        return "process", peak_process_bytes()

    def close(self) -> None:
        """Restore the kernels that torch used before."""
        self._open.close()

    def rows(self, examples: Sequence[ShardExample]) -> Mapping[str, NDArray[Any]]:
        """Compute the row fields of all examples, concatenated in their order.

        Examples that the teacher computes differently in a batch run apart. A GPU may still be at
        work when this returns: reading a field waits for it.
        """
        return self.rows_for(self.targets, examples)

    @torch.inference_mode()
    def rows_for(
        self, reduction: Reduction, examples: Sequence[ShardExample]
    ) -> Mapping[str, NDArray[Any]]:
        """`rows` with other targets than those of the store."""
        with memory_errors():
            positions = [logit_positions(example.is_response) for example in examples]
            # The token of the last row is a label only: the forward pass does not need it.
            inputs = [e.token_ids[: p[-1] + 1] for e, p in zip(examples, positions, strict=True)]
            hidden: list[torch.Tensor] = [torch.empty(0)] * len(examples)
            for group in self.groups.groups([len(tokens) for tokens in inputs]):
                own = [positions[index] for index in group]
                arranged = self.arrange([inputs[index] for index in group])
                together = self.split.hidden_rows(arranged, own)
                parts = torch.split(together, [len(rows) for rows in own])
                for index, part in zip(group, parts, strict=True):
                    hidden[index] = part
            return self._fields(reduction, examples, torch.cat(hidden))

    def _fields(
        self, reduction: Reduction, examples: Sequence[ShardExample], hidden: torch.Tensor
    ) -> Mapping[str, NDArray[Any]]:
        """Compute the row fields of hidden states [N, H], tile by tile."""
        wanted = [row_labels(e.token_ids, e.is_response) for e in examples]
        labels = to_device(np.concatenate(wanted).astype(np.int64), hidden.device)
        numbers = to_device(reduction.numbers(examples), hidden.device)
        row_bytes = self.num_columns * hidden.element_size()
        tile = max(MIN_TILE_ROWS, TILE_BYTES[hidden.device.type] // row_bytes)
        parts = [
            columns
            for start in range(0, len(labels), tile)
            for columns in self._tile(
                reduction,
                hidden[start : start + tile],
                labels[start : start + tile],
                numbers[start : start + tile],
            )
        ]
        whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return CopiedFields(whole, reduction.stored)

    def _tile(
        self,
        reduction: Reduction,
        hidden: torch.Tensor,
        labels: torch.Tensor,
        numbers: torch.Tensor,
    ) -> Iterator[Columns]:
        """Compute the rows of hidden states [N, H], a slice of rows at a time."""
        product = self.split.head(hidden)
        num_rows = max(1, SLICE_LOGITS[product.device.type] // self.num_columns)
        for start in range(0, len(labels), num_rows):
            part = slice(start, start + num_rows)
            logits = self.split.narrow_logits(product[part], self.num_columns)
            own = labels[part].to(logits.device), numbers[part].to(logits.device)
            yield reduction.columns(logits, *own)


def _check_width(split: SplitModel, checkpoint: TransformersCheckpoint) -> None:
    """Refuse a model whose head returns fewer columns than its config has, as one rank's part.

    Raises:
        UsageError: names both widths.
    """
    if split.num_ids != checkpoint.num_ids:
        raise UsageError(
            f"{FLAG} {checkpoint.name}: {split.architecture} has {split.num_ids} logits of a token "
            f"when it is loaded, but {checkpoint.num_ids} by its config; expected as many on each "
            "rank: omit --tensor-parallel, or pass another model"
        )
