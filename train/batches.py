"""From a store to padded tensors: what one rank needs of a step.

Legend: B examples of a micro-batch, T longest of them in tokens, N its rows, k cells per row.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from caskd.store import StoreBatch, TeacherStore
from caskd.train.loss_types import TeacherRows
from caskd.train.objectives import Objective
from caskd.train.order import ExampleOrder, IntArray, longest_first, rank_slice

R = TypeVar("R")


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """What one forward of the student takes.

    Attributes:
        input_ids: [B, T] padded on the right.
        attention_mask: [B, T] 1 on tokens.
        gather_index: [N] index into the flattened [B * T] hidden states, of the position whose
            logits predict row n.
        labels: [N].
        teacher: what the teacher said of the rows.
    """

    input_ids: Tensor
    attention_mask: Tensor
    gather_index: Tensor
    labels: Tensor
    teacher: TeacherRows

    def to(self, device: torch.device) -> "MicroBatch":
        """The same on `device`."""
        return _map_tensors(self, lambda tensor: tensor.to(device, non_blocking=True))

    def pin(self) -> "MicroBatch":
        """The same in page-locked memory, from which a GPU copies without waiting."""
        return _map_tensors(self, lambda tensor: tensor.pin_memory())


def _map_tensors(record: R, function: Callable[[Tensor], Tensor]) -> R:
    """A record (of records) of tensors with `function` applied to each."""

    def mapped(value: Any) -> Any:
        if value is None:
            return None
        return function(value) if isinstance(value, Tensor) else _map_tensors(value, function)

    columns = (mapped(getattr(record, field.name)) for field in fields(record))  # type: ignore[arg-type]
    return type(record)(*columns)


@dataclass(frozen=True, eq=False)
class StepBatch:
    """One rank's part of an optimizer step, and the counts of the whole step.

    Attributes:
        step: 0 is the first.
        micro_batches: one per micro-step.
        num_rows: response tokens of the step, over all ranks and micro-steps.
        num_examples: examples of the step, likewise.
    """

    step: int
    micro_batches: tuple[MicroBatch, ...]
    num_rows: int
    num_examples: int


def fields_to_read(objective: Objective, kind: str = "topk") -> tuple[str, ...]:
    """The row fields that an objective needs of a store of this kind; `argmax` always, for the
    teacher's accuracy.
    """
    if not objective.needs_distribution:
        return ("argmax", "num_kept")
    if kind == "sampled":
        return ("argmax", "num_kept", "sampled_ids", "sampled_counts")
    return ("argmax", "num_kept", "topk_ids", "topk_logits", "logsumexp", "tail_mass")


def collate(batch: StoreBatch, pad_id: int) -> MicroBatch:
    """Pad examples on the right and index the positions that predict rows."""
    lengths = np.diff(batch.token_offsets)
    shape = (len(lengths), int(lengths.max()))
    inside = np.arange(shape[1]) < lengths[:, None]
    input_ids = np.full(shape, pad_id, np.int64)
    input_ids[inside] = batch.token_ids
    example = np.repeat(np.arange(shape[0]), np.diff(batch.row_offsets))
    return MicroBatch(
        input_ids=torch.from_numpy(input_ids),
        attention_mask=torch.from_numpy(inside.astype(np.int64)),
        gather_index=torch.from_numpy(example * shape[1] + batch.logit_positions),
        labels=torch.from_numpy(batch.labels.astype(np.int64)),
        teacher=teacher_rows(batch),
    )


def teacher_rows(batch: StoreBatch) -> TeacherRows:
    """What the teacher said of a batch's rows, as far as it was read."""
    source = vars(batch) if batch.sampled_ids is None else _sampled_columns(batch)
    columns: dict[str, Any] = {
        field.name: _tensor(source[field.name]) for field in fields(TeacherRows)
    }
    return TeacherRows(**columns)


def _sampled_columns(batch: StoreBatch) -> dict[str, npt.NDArray[Any] | None]:
    """Draws as the fields of a top-k whose probabilities are counts / num_samples, without a tail.

    The cells that no row of the batch uses are cut off.
    """
    num_kept, counts = batch.column("num_kept"), batch.column("sampled_counts")
    used = max(int(num_kept.max(initial=0)), 1)
    num_samples = counts.sum(axis=1, keepdims=True, dtype=np.int64)
    nothing = np.zeros(batch.num_rows, np.float32)
    with np.errstate(divide="ignore"):  # padding is -inf
        log_p = np.log(counts[:, :used] / np.maximum(num_samples, 1)).astype(np.float32)
    return {
        "argmax": batch.argmax,
        "topk_ids": batch.column("sampled_ids")[:, :used],
        "topk_logits": log_p,
        "num_kept": num_kept,
        "logsumexp": nothing,
        "tail_mass": nothing,
    }


def _tensor(column: npt.NDArray[Any] | None) -> Tensor | None:
    """Integers as int64: torch has few operations on unsigned ones."""
    if column is None:
        return None
    return torch.from_numpy(column.astype(np.int64) if column.dtype.kind == "u" else column)


@dataclass(frozen=True, kw_only=True, eq=False)
class BatchReader:
    """Reads the part of one rank, step by step."""

    store: TeacherStore
    order: ExampleOrder
    row_fields: tuple[str, ...]
    pad_id: int
    global_batch_size: int
    micro_batch_size: int
    accumulation_steps: int
    rank: int
    world_size: int
    pin_memory: bool

    def steps(self, first: int, stop: int) -> Iterator[StepBatch]:
        """Steps `first` to `stop` - 1."""
        row_counts, token_counts = self.store.row_counts(), self.store.token_counts()
        # A remote store fetches whole shards: the next window's, while this one is read.
        ahead = max(1, self.order.examples_per_window // self.global_batch_size)
        for step in range(first, stop):
            coming = self.order.examples_for_step(step + ahead, self.global_batch_size)
            self.store.prefetch(coming, self.row_fields)
            examples = self.order.examples_for_step(step, self.global_batch_size)
            by_length = longest_first(examples, token_counts)
            yield StepBatch(
                step=step,
                micro_batches=tuple(
                    self._micro_batch(by_length, micro_step)
                    for micro_step in range(self.accumulation_steps)
                ),
                num_rows=int(row_counts[examples].sum(dtype=np.int64)),
                num_examples=len(examples),
            )

    def _micro_batch(self, examples: IntArray, micro_step: int) -> MicroBatch:
        mine = rank_slice(
            examples,
            micro_step=micro_step,
            rank=self.rank,
            world_size=self.world_size,
            micro_batch_size=self.micro_batch_size,
        )
        batch = collate(self.store.read(mine, self.row_fields), self.pad_id)
        return batch.pin() if self.pin_memory else batch
