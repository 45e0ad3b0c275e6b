"""`StoreDataset`: stores as a torch dataset, for other training loops.

Legend: T tokens and N rows of an example, B examples of a batch, k cells per row.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from caskd.models import check_vocabulary
from caskd.store import TeacherStore
from caskd.store.errors import IdentityError, UsageError
from caskd.train.data import (
    MixedOrder,
    StoreMix,
    StudentTokens,
    fields_to_read,
    many_epochs,
    read_spans,
    span_fields,
    stream_positions,
)
from caskd.train.integrations.items import Example, collate_items, span_item, split
from caskd.train.model import (
    SpanOptions,
    check_any_spans,
    check_other_bytes,
    sample_alignment,
    student_tokens,
    text_notes,
)
from caskd.train.objectives import OBJECTIVES, MatchName, Objective, Tail, resolve_unmasked


class StoreDataset(IterableDataset[Example]):
    """Examples of one or several stores, shuffled in an order that depends on the position only.

    It yields dicts: `input_ids` [T]; `labels` [T], -100 except on predicted tokens and not shifted,
    as in transformers; `logit_positions` [N], the position of the hidden state that predicts each
    row; and `teacher_*` [N] or [N, k], the stored teacher rows. `StoreDataset.collate` makes a
    batch of them. For a student with another tokenizer the tokens are its own, and `spans` takes
    the place of `teacher_*`.

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
        tokenizer: the student's. If its vocabulary is not the stores', or the objective matches
            spans, the examples are in its tokens. If it is, other end tokens, BOS or chat template
            are warned of.
        match: as of `--match`, for a student with another tokenizer; so are the next ones.
        data: corpora of stores of conversations.
        messages_column: of `data`.
        max_length: positions of the student: longer examples are left out.
        allow_other_bytes: share of the examples whose bytes its tokenizer may change.
        accept_imported: read stores that `caskd import` made of another program's rows.

    Raises:
        CaskdError: a store cannot be opened, or cannot be mixed with the others; or the tokenizer
            cannot be aligned with it, or too many examples of a sample have other bytes.
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
        match: MatchName = "likelihood",
        data: Sequence[str] = (),
        messages_column: str = "messages",
        max_length: int | None = None,
        allow_other_bytes: float = 0.01,
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
        chosen = resolve_unmasked(objective, w, "StoreDataset", match)
        if chosen.matches_spans and tokenizer is None:
            raise UsageError(
                f"StoreDataset: objective {objective!r} reads the text in the student's tokens, "
                "and tokenizer is None; expected the student's; pass StoreDataset(tokenizer=...)"
            )
        # Opened and checked here, not in a worker.
        self._mix = StoreMix.open(stores, one_vocabulary=tokenizer is None)
        self._mix.check_known(chosen, None)
        self._mix.check_imported(None if accept_imported else "accept_imported=True")
        self._known_order: MixedOrder | None = None
        self.kind, self.max_length = self._mix.spec.kind, max_length
        self._objective, self._tokens = chosen, None
        if tokenizer is not None:
            options = SpanOptions(
                student="StoreDataset(tokenizer=...)",
                objective_name=objective,
                objective=chosen,
                data=tuple(data),
                messages_column=messages_column,
                max_length=max_length,
            )
            self._tokens = student_tokens(self.opened, tokenizer, options)
            self._pad_id = tokenizer.pad_token_id or 0
            if self._tokens is not None:
                self._check_alignment(self._tokens, allow_other_bytes)
            else:
                for note in text_notes(self.opened, tokenizer):
                    warnings.warn(f"StoreDataset: {note}", stacklevel=2)
        self._row_fields = self._fields_of(chosen)

    def _check_alignment(self, tokens: Sequence[StudentTokens], allowed: float) -> None:
        """Refuse a tokenizer that changes the bytes of many examples, as a sample shows."""
        stats = sample_alignment(self._mix, tokens, self._order, self._objective)
        check_other_bytes(stats.num_other_bytes, stats.num_examples, allowed)
        check_any_spans(stats)

    def _fields_of(self, objective: Objective) -> tuple[str, ...]:
        if self._tokens is not None:
            return span_fields(objective)
        return fields_to_read(objective, self.kind)

    @property
    def has_spans(self) -> bool:
        """Whether the examples are in the tokens of a student with another tokenizer."""
        return self._tokens is not None

    def check_objective(self, objective: Objective, user: str) -> None:
        """Refuse an objective that needs what the examples do not have.

        Args:
            objective: of the training.
            user: the caller's name, for the error.

        Raises:
            UsageError: the objective reads other fields.
        """
        if objective.matches_spans and not self.has_spans:
            raise UsageError(
                f"{user}: the objective matches spans of bytes, and the dataset has the teacher's "
                "tokens; expected the student's; pass StoreDataset(tokenizer=..., objective=...)"
            )
        if self.has_spans and not {*self._fields_of(objective)} <= {*self._row_fields}:
            raise UsageError(
                f"{user}: the objective has a teacher term, and that of the dataset has none; "
                "expected one objective and w for both; pass them to StoreDataset, too"
            )

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
        """No example has more tokens."""
        if self._tokens is not None:
            return max(one.max_length for one in self._tokens)
        return int(self._mix.token_counts().max())

    def check_tokenizer(self, tokenizer: Any, user: str) -> None:
        """Refuse a student with another vocabulary than the stores: it would misread their ids.

        Args:
            tokenizer: of the student.
            user: the caller's name, for the error.

        Raises:
            IdentityError: the vocabularies differ.
        """
        if self._tokens is not None:
            if not all(one.is_of(tokenizer) for one in self._tokens):
                raise IdentityError(
                    f"{user}: the processing_class has another vocabulary than the tokenizer of "
                    "StoreDataset; expected the student's tokenizer; pass it to both"
                )
            return
        try:
            check_vocabulary(tokenizer, self._mix.spec, f"{user}: the processing_class")
        except IdentityError as error:
            raise IdentityError(
                f"{error}; or pass StoreDataset(tokenizer=...), which aligns another tokenizer"
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
            for example in self._read(examples):
                self._yielded += 1
                yield example

    def _read(self, examples: Any) -> Iterator[Example]:
        if self._tokens is None:
            return split(self._mix.read(examples, self._row_fields))
        found = read_spans(self._mix, examples, self._row_fields, self._tokens)
        return (span_item(example, self._pad_id) for example in found)

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
    def collate(examples: Sequence[Mapping[str, Any]], pad_id: int = 0) -> dict[str, Tensor]:
        """A batch: `input_ids`, `attention_mask` and `labels` [B, T], padded on the right.

        If the examples have teacher rows, the batch also has `gather_index` [N] into the flattened
        [B * T] hidden states, and `teacher_*`, the concatenated rows of all examples; with spans,
        the tensors of `span_tensors` in place of them.
        """
        return collate_items(examples, pad_id)

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
