"""From stores to tensors: the batches of one rank.

Legend: B rows of input of a micro-batch (one example each, or several packed examples), T their
length in tokens, N predicted tokens of a micro-batch, k cells of each.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from caskd.store import StoreBatch
from caskd.store.format import ROW_KINDS, TOPK
from caskd.train.data.micro_steps import MicroBatchSplit
from caskd.train.data.mixture import MixedOrder
from caskd.train.data.order import IntArray
from caskd.train.data.packing import restarting_positions, row_starts
from caskd.train.data.random_mask import RandomMask
from caskd.train.data.row_weights import RowWeights, WeighedRows, weighed_rows
from caskd.train.data.store_mix import StoreMix
from caskd.train.delegation import DelegateReader, DelegateRows
from caskd.train.loss import TeacherRows, TeacherSpans
from caskd.train.objectives import Objective

R = TypeVar("R")


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """Input of one forward of the student.

    Attributes:
        input_ids: [B, T] padded on the right.
        attention_mask: [B, T] 1 on tokens; None where examples are packed.
        gather_index: [N] index into the flattened [B * T] hidden states, of the position whose
            logits predict row n.
        labels: [N].
        teacher: the stored teacher rows; None where the student has another tokenizer.
        position_ids: [B, T] restarting at 0 in each packed example; None without packing.
        keep: [N] bool, or [C] with spans, the mask of a random-* objective; None where the loss
            computes the mask.
        spans: of the rows, C of them, and the teacher's values of each; None where the student has
            the teacher's tokenizer.
        delegate: what the choice of delegated rows reads; None without a CALL column.
        weighed: what a rule of row weights reads; None without one.
    """

    input_ids: Tensor
    attention_mask: Tensor | None
    gather_index: Tensor
    labels: Tensor
    teacher: TeacherRows | None
    position_ids: Tensor | None = None
    keep: Tensor | None = None
    spans: TeacherSpans | None = None
    delegate: DelegateRows | None = None
    weighed: WeighedRows | None = None

    def to(self, device: torch.device) -> "MicroBatch":
        """The batch on `device`."""
        return _map_tensors(self, lambda tensor: tensor.to(device, non_blocking=True))

    def pin(self) -> "MicroBatch":
        """The batch in page-locked memory, which a GPU copies from without blocking."""
        return _map_tensors(self, lambda tensor: tensor.pin_memory())

    def keep_for(self, stream: torch.cuda.Stream) -> None:
        """Let the allocator reuse the memory only after the work of `stream`, which is not the
        stream that allocated it."""

        def keep(tensor: Tensor) -> Tensor:
            tensor.record_stream(stream)
            return tensor

        _map_tensors(self, keep)


def _map_tensors(record: R, function: Callable[[Tensor], Tensor]) -> R:
    """A record of tensors and records, with `function` applied to each tensor."""

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
        num_rows: response tokens of the step, or spans, over all ranks and micro-steps.
        num_examples: examples of the step, over all ranks and micro-steps.
        examples_per_store: `num_examples` by store, in the order of --store.
        left_out: examples of the step that a student with another tokenizer cannot learn from, by
            reason; empty for other students.
        matched: `mapped_shares` of the step; empty where no top-k is mapped.
    """

    step: int
    micro_batches: tuple[MicroBatch, ...]
    num_rows: int
    num_examples: int
    examples_per_store: tuple[int, ...]
    left_out: Mapping[str, int] = field(default_factory=dict)
    matched: Mapping[str, float | None] = field(default_factory=dict)


def fields_to_read(objective: Objective, kind: str = TOPK.name) -> tuple[str, ...]:
    """The row fields that an objective reads from a store of this kind.

    `argmax` is always among them, for the teacher's accuracy.
    """
    if not objective.needs_distribution:
        return ("argmax", "num_kept")
    return ("argmax", "num_kept", *ROW_KINDS[kind].distribution)


def collate(batch: StoreBatch, pad_id: int, *, packed: bool = False) -> MicroBatch:
    """Lay examples out in rows of one length, and index the positions that predict their tokens.

    Each example has its own row. With `packed`, several examples share a row, and the student's
    attention must keep them apart.
    """
    lengths = np.diff(batch.token_offsets)
    if packed:
        starts_list, num_rows = row_starts(lengths.tolist())
        starts = np.array(starts_list)
    else:
        num_rows = len(lengths)
        starts = np.arange(num_rows) * lengths.max()
    positions = np.repeat(starts - batch.token_offsets[:-1], lengths) + np.arange(lengths.sum())
    shape = (num_rows, int(lengths.max()))
    input_ids = np.full(shape, pad_id, np.int64)
    input_ids.flat[positions] = batch.token_ids
    attention_mask = np.zeros(shape, np.int64)
    attention_mask.flat[positions] = 1
    position_ids = restarting_positions(starts, lengths, num_rows) if packed else None
    example_starts = np.repeat(starts, np.diff(batch.row_offsets))
    return MicroBatch(
        input_ids=torch.from_numpy(input_ids),
        attention_mask=None if packed else torch.from_numpy(attention_mask),
        gather_index=torch.from_numpy(example_starts + batch.logit_positions),
        labels=torch.from_numpy(batch.labels.astype(np.int64)),
        teacher=None if batch.argmax is None else teacher_rows(batch),
        position_ids=None if position_ids is None else torch.from_numpy(position_ids),
    )


def teacher_rows(batch: StoreBatch) -> TeacherRows:
    """The teacher rows of a batch; fields that were not read are None."""
    if batch.sampled_ids is None:
        source: Mapping[str, Any] = vars(batch)
    else:
        source = _sampled_columns(batch)
    columns: dict[str, Any] = {
        field.name: tensor_of(source[field.name]) for field in fields(TeacherRows)
    }
    return TeacherRows(**columns)


def _sampled_columns(batch: StoreBatch) -> dict[str, npt.NDArray[Any] | None]:
    """Draws as the fields of a top-k with probabilities counts / num_samples and no tail.

    With a head, the draws share the mass outside of it, and the head's probabilities are scaled to
    the rest: storage rounds both. Trailing cells that no row of the batch uses are dropped.
    """
    num_kept, counts = batch.column("num_kept"), batch.column("sampled_counts")
    used = max(int(num_kept.max(initial=0)), 1)
    num_samples = counts.sum(axis=1, keepdims=True, dtype=np.int64)
    nothing = np.zeros(batch.num_rows, np.float32)
    share = counts[:, :used] / np.maximum(num_samples, 1)
    if batch.num_head is not None:
        share = _with_head(batch, share)
    with np.errstate(divide="ignore"):  # padding is -inf
        log_p = np.log(share).astype(np.float32)
    return {
        "argmax": batch.argmax,
        "topk_ids": batch.column("sampled_ids")[:, :used],
        "topk_logits": log_p,
        "num_kept": num_kept,
        "logsumexp": nothing,
        "tail_mass": nothing,
    }


def _with_head(batch: StoreBatch, share: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Target probabilities [N, used] of the head and of the draws, from the draws' shares."""
    drawn = batch.column("drawn_mass").astype(np.float64).clip(0, 1)[:, None]
    used = share.shape[1]
    logits = batch.column("head_logits")[:, :used].astype(np.float64)
    head = np.exp(logits - batch.column("logsumexp").astype(np.float64)[:, None])
    head[np.arange(used) >= batch.column("num_head")[:, None]] = 0
    total = head.sum(axis=1, keepdims=True)
    scaled = head * ((1 - drawn) / np.where(total > 0, total, 1))
    target: npt.NDArray[np.float64] = scaled + share * drawn
    return target


def tensor_of(column: npt.NDArray[Any] | None) -> Tensor | None:
    """A column as a tensor. Unsigned integers become int64: torch has few operations on them."""
    if column is None:
        return None
    return torch.from_numpy(column.astype(np.int64) if column.dtype.kind == "u" else column)


@dataclass(frozen=True, kw_only=True, eq=False)
class StepReader:
    """Which examples one rank reads for each step, and how it lays them out."""

    store: StoreMix
    order: MixedOrder
    row_fields: tuple[str, ...]
    pad_id: int
    global_batch_size: int
    split: MicroBatchSplit
    rank: int
    pin_memory: bool
    mask: RandomMask | None = None

    def examples_of_steps(
        self, first: int, stop: int
    ) -> Iterator[tuple[int, IntArray, tuple[int, ...]]]:
        """The examples [G] of steps `first` to `stop` - 1, and their number by store.

        It prefetches those of a later step.
        """
        # A remote store fetches whole shards: those of the next window while this one is read.
        ahead = max(1, self.order.examples_per_window // self.global_batch_size)
        for step in range(first, stop):
            later = self.order.examples_for_step(step + ahead, self.global_batch_size)
            self.store.prefetch(later, self.row_fields)
            examples = self.order.examples_for_step(step, self.global_batch_size)
            counts = np.bincount(self.order.stores_of(examples), minlength=len(self.order.sizes))
            yield step, examples, tuple(counts.tolist())


@dataclass(frozen=True, kw_only=True, eq=False)
class BatchReader(StepReader):
    """Reads the batches of one rank, step by step."""

    delegate: DelegateReader | None = None
    row_weights: RowWeights | None = None

    def steps(self, first: int, stop: int) -> Iterator[StepBatch]:
        """The batches of steps `first` to `stop` - 1."""
        row_counts, token_counts = self.store.row_counts(), self.store.token_counts()
        for step, examples, by_store in self.examples_of_steps(first, stop):
            yield StepBatch(
                step=step,
                micro_batches=tuple(
                    self._micro_batch(parts[self.rank], step)
                    for parts in self.split.parts(examples, token_counts)
                ),
                num_rows=int(row_counts[examples].sum(dtype=np.int64)),
                num_examples=len(examples),
                examples_per_store=by_store,
            )

    def _micro_batch(self, examples: IntArray, step: int) -> MicroBatch:
        read = self.store.read(examples, self.row_fields)
        batch = collate(read, self.pad_id, packed=self.split.packed)
        if self.mask is not None:
            batch = replace(batch, keep=torch.from_numpy(self.mask.keep(step, read)))
        if self.delegate is not None:
            batch = replace(batch, delegate=self.delegate.rows(step, read))
        if self.row_weights is not None:
            batch = replace(batch, weighed=weighed_rows(self.row_weights, step, read))
        return batch.pin() if self.pin_memory else batch
