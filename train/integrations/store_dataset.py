"""`StoreDataset`: stores as a torch dataset, for other training loops.

Legend: T tokens and N rows of an example, B examples of a batch, k cells per row.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from caskd.models import check_vocabulary
from caskd.store import StoreBatch, TeacherStore
from caskd.store.errors import IdentityError, UsageError
from caskd.train.data import (
    MixedOrder,
    StoreMix,
    fields_to_read,
    many_epochs,
    stream_positions,
    teacher_rows,
)
from caskd.train.loss import IGNORE_LABEL
from caskd.train.model import text_notes
from caskd.train.objectives import OBJECTIVES, Tail, resolve_unmasked

Example = dict[str, Tensor]

TEACHER = "teacher_"


class StoreDataset(IterableDataset[Example]):
    """Examples of one or several stores, shuffled in an order that depends on the position only.

    It yields dicts: `input_ids` [T]; `labels` [T], -100 except on predicted tokens and not shifted,
    as in transformers; `logit_positions` [N], the position of the hidden state that predicts each
    row; and `teacher_*` [N] or [N, k], the stored teacher rows. `StoreDataset.collate` makes a
    batch of them.

    Ranks and DataLoader workers share the examples. The batches are the same for any number of
    them, if `batch_size` equals the DataLoader's. With one store, an epoch is every example once.
    With several stores, it is as many examples as they have together, drawn by weight. `set_epoch`
    chooses the first epoch. `state_dict` holds the position of this reader.

    Args:
        stores: URL or URL=weight of each, as for `--store`.
        objective: name of the objective, which decides the teacher fields to read; see
            `cascade_aware_loss`.
        w: weight of the label term; None is the objective's default.
        seed: of the order.
        batch_size: the DataLoader's.
        num_epochs: epochs of one pass over this dataset; None never ends.
        rank: of this process; by default torch.distributed's, or 0.
        world_size: number of processes that share the examples; by default torch.distributed's,
            or 1.
        tokenizer: the student's. If it is given, another vocabulary than the stores' is refused,
            and other end tokens, BOS or chat template are warned of.
        accept_imported: read stores that `caskd import` made of another program's rows.

    Raises:
        CaskdError: a store cannot be opened, or cannot be mixed with the others, or the
            vocabularies differ.
    """

    def __init__(
        self,
        *stores: str,
        objective: str = "cat-dist",
        w: float | None = None,
        seed: int = 0,
        batch_size: int = 1,
        num_epochs: int | None = 1,
        rank: int | None = None,
        world_size: int | None = None,
        tokenizer: Any = None,
        accept_imported: bool = False,
    ) -> None:
        if (rank is None) != (world_size is None):
            raise UsageError(
                f"StoreDataset: rank is {rank} and world_size is {world_size}; expected both or "
                "neither; pass both, or neither"
            )
        self.stores, self.seed, self.batch_size = stores, seed, batch_size
        self.num_epochs = num_epochs
        self._ranks = None if rank is None or world_size is None else (rank, world_size)
        self._epoch = self._yielded = 0
        # Persistent workers keep their copy of this dataset, but share this tensor: the epoch, and
        # how often it was set.
        shared: Any = torch.zeros(2, dtype=torch.int64)
        self._shared = shared.share_memory_()
        self._calls_seen = 0
        self._resumed = False
        chosen = resolve_unmasked(objective, w, "StoreDataset")
        self._mix = StoreMix.open(stores)  # checked here, not in a worker
        self._mix.check_known(chosen, None)
        self._mix.check_imported(None if accept_imported else "accept_imported=True")
        self._known_order: MixedOrder | None = None
        self.kind = self._mix.spec.kind
        self._row_fields = fields_to_read(chosen, self.kind)
        if tokenizer is not None:
            check_vocabulary(tokenizer, self._mix.spec, "StoreDataset(tokenizer=...)")
            for note in text_notes(self.opened, tokenizer):
                warnings.warn(f"StoreDataset: {note}", stacklevel=2)

    @property
    def opened(self) -> Sequence[TeacherStore]:
        """The open stores."""
        return self._mix.stores

    def check_tail(self, tail: Tail) -> None:
        """Refuse a tail mode that reads what a store does not know.

        Raises:
            UsageError: names the store and its capture field.
        """
        self._mix.check_known(OBJECTIVES["dist"], tail)

    @property
    def knows_argmax(self) -> bool:
        """Whether every store knows the teacher's most likely token."""
        return self._mix.knows_argmax

    @property
    def longest(self) -> int:
        """Tokens of the longest example."""
        return int(self._mix.token_counts().max())

    def check_tokenizer(self, tokenizer: Any, user: str) -> None:
        """Refuse a student with another vocabulary than the stores: it would misread their ids.

        Args:
            tokenizer: of the student.
            user: the caller's name, for the error.

        Raises:
            IdentityError: the vocabularies differ.
        """
        try:
            check_vocabulary(tokenizer, self._mix.spec, f"{user}: the processing_class")
        except IdentityError as error:
            raise IdentityError(
                f"{error}; or run caskd train, which alone aligns another tokenizer"
            ) from None

    def many_epochs(self, *, steps: int, batch: int, flags: tuple[str, str]) -> Iterator[str]:
        """A line for each store that so many steps would pass over too often to be meant."""
        return many_epochs(self._mix, self._order, steps=steps, batch=batch, flags=flags)

    def set_epoch(self, epoch: int) -> None:
        """Start the next pass with this epoch, unless it continues from a loaded state.

        It also reaches the persistent workers of a DataLoader.
        """
        if not self._resumed:
            self._epoch = epoch
            self._shared[0] = epoch
            self._shared[1] += 1
            self._calls_seen = int(self._shared[1])

    def __iter__(self) -> Iterator[Example]:
        epoch, calls = self._shared.tolist()
        if not self._resumed:
            self._yielded = 0
            if calls != self._calls_seen:  # set_epoch in the process that owns this worker
                self._epoch = epoch
        self._calls_seen = calls
        self._resumed = False  # now: the consumer may never take the first example
        return self._examples(self._yielded)

    def _examples(self, skipped: int) -> Iterator[Example]:
        mix, order = self._mix, self._order
        for positions in self._batches(order):
            if skipped >= len(positions):
                skipped -= len(positions)
                continue
            # A remote store fetches whole shards: those of the next window while this one is read.
            mix.prefetch(order.at(positions + order.examples_per_window), self._row_fields)
            examples = order.at(positions[skipped:])
            skipped = 0
            for example in split(mix.read(examples, self._row_fields)):
                self._yielded += 1
                yield example

    def state_dict(self) -> dict[str, int]:
        """The position of this reader, for a reader of the same rank and worker."""
        rank, world_size, worker, num_workers = self._layout()
        return {
            "epoch": self._epoch,
            "yielded": self._yielded,
            "seed": self.seed,
            "batch_size": self.batch_size,
            "rank": rank,
            "world_size": world_size,
            "worker": worker,
            "num_workers": num_workers,
        }

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue from the position of a `state_dict`.

        Raises:
            UsageError: the state is of a reader with another rank, worker, seed or batch size.
        """
        for name, value in self.state_dict().items():
            if name not in ("epoch", "yielded") and state[name] != value:
                raise UsageError(
                    f"StoreDataset: {name} is {value}; expected {state[name]}, with which the "
                    "state was saved; load it with the same value, or start an epoch with set_epoch"
                )
        self._epoch, self._yielded = state["epoch"], state["yielded"]
        self._resumed = True

    @staticmethod
    def collate(examples: Sequence[Mapping[str, Tensor]], pad_id: int = 0) -> dict[str, Tensor]:
        """A batch: `input_ids`, `attention_mask` and `labels` [B, T], padded on the right.

        If the examples have teacher rows, the batch also has `gather_index` [N] into the flattened
        [B * T] hidden states, and `teacher_*`, the concatenated rows of all examples.
        """
        lengths = [len(example["input_ids"]) for example in examples]
        batch = {
            name: torch.nn.utils.rnn.pad_sequence(
                [example[name] for example in examples], batch_first=True, padding_value=filler
            )
            for name, filler in (("input_ids", pad_id), ("labels", IGNORE_LABEL))
        }
        longest = max(lengths)
        batch["attention_mask"] = (torch.arange(longest) < torch.tensor(lengths)[:, None]).long()
        if "logit_positions" in examples[0]:
            index = [e["logit_positions"] + b * longest for b, e in enumerate(examples)]
            batch["gather_index"] = torch.cat(index)
        for name in examples[0]:
            if name.startswith(TEACHER):
                batch[name] = torch.cat(_padded_to_widest([example[name] for example in examples]))
        return batch

    def _batches(self, order: MixedOrder) -> Iterator[Any]:
        """The positions of each of this reader's batches."""
        rank, world_size, worker, num_workers = self._layout()
        size, first = order.num_examples, self._epoch * order.num_examples
        stop = first + size * self.num_epochs if self.num_epochs is not None else 1 << 62
        return stream_positions(
            range(first, stop),
            batch_size=self.batch_size,
            rank=rank,
            world_size=world_size,
            worker=worker,
            num_workers=num_workers,
        )

    def _layout(self) -> tuple[int, int, int, int]:
        """Rank, world size, worker, number of workers."""
        rank, world_size = self._ranks or _ranks_here()
        info = get_worker_info()
        return rank, world_size, info.id if info else 0, info.num_workers if info else 1

    @property
    def _order(self) -> MixedOrder:
        if self._known_order is None:
            self._known_order = self._mix.order(self.seed)
        return self._known_order

    def __getstate__(self) -> dict[str, Any]:
        """The state for spawned workers: the rank, and the stores as their URLs."""
        return {**self.__dict__, "_known_order": None, "_ranks": self._ranks or _ranks_here()}


def _ranks_here() -> tuple[int, int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def split(batch: StoreBatch) -> Iterator[Example]:
    """The examples of a batch, one by one."""
    tokens = torch.from_numpy(batch.token_ids.astype(np.int64))
    row_labels = torch.from_numpy(batch.labels.astype(np.int64))
    positions = torch.from_numpy(batch.logit_positions)
    teacher = vars(teacher_rows(batch))
    rows = {TEACHER + name: column for name, column in teacher.items() if column is not None}
    token_offsets, row_offsets = batch.token_offsets.tolist(), batch.row_offsets.tolist()
    for index in range(len(batch.example_indices)):
        in_tokens = slice(token_offsets[index], token_offsets[index + 1])
        in_rows = slice(row_offsets[index], row_offsets[index + 1])
        labels = torch.full((in_tokens.stop - in_tokens.start,), IGNORE_LABEL)
        labels[positions[in_rows] + 1] = row_labels[in_rows]
        yield {
            "input_ids": tokens[in_tokens],
            "labels": labels,
            "logit_positions": positions[in_rows],
            **{name: column[in_rows] for name, column in rows.items()},
        }


def _padded_to_widest(columns: list[Tensor]) -> list[Tensor]:
    """Columns [N, k] of stores with different k, padded to the largest k; `num_kept` masks that."""
    if columns[0].ndim == 1:
        return columns
    widest = max(column.shape[1] for column in columns)
    filler = float("-inf") if columns[0].is_floating_point() else 0
    pad = torch.nn.functional.pad
    return [pad(column, (0, widest - column.shape[1]), value=filler) for column in columns]
