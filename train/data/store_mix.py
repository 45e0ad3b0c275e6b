"""Open one or several stores for training, and read them as one.

Legend: S stores, B requested examples, T their tokens, N their rows, k cells per row.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from caskd.store import StoreBatch, StoreSpec, TeacherStore
from caskd.store.errors import IdentityError, UsageError
from caskd.store.format import check_imported
from caskd.train.data.mixture import MixedOrder, check_weights, parse_store, shares
from caskd.train.data.order import ExampleOrder, IntArray, blocks_of
from caskd.train.objectives import ConfidenceRule, Objective, Tail, check_known

Array = npt.NDArray[Any]

MANY_EPOCHS = 100
"""A run of more passes over a store than this is warned of."""


class StoreMix:
    """Stores of one kind, with weights. Create it with `StoreMix.open`.

    Attributes:
        stores: in the order of --store.
        weights: one per store, up to a common factor.
    """

    def __init__(
        self,
        stores: Sequence[TeacherStore],
        weights: Sequence[float],
        *,
        one_vocabulary: bool = True,
    ) -> None:
        self.stores, self.weights = tuple(stores), tuple(weights)
        _check_agreement(self.stores, one_vocabulary=one_vocabulary)
        check_weights(self.weights)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as the URLs of its stores."""
        return StoreMix, (self.stores, self.weights)

    @classmethod
    def open(cls, names: Sequence[str], *, one_vocabulary: bool = True) -> "StoreMix":
        """Open stores given as URL or URL=weight.

        Args:
            names: of the stores.
            one_vocabulary: refuse stores of several vocabularies.

        Raises:
            CaskdError: there is no store, a store is not sealed, a weight is invalid, or the stores
                cannot be mixed.
        """
        if not names:
            raise UsageError("--store: got no store; expected at least one; pass --store URL")
        parsed = [parse_store(name) for name in names]
        stores = [TeacherStore.open(url) for url, _ in parsed]
        return cls(stores, [w for _, w in parsed], one_vocabulary=one_vocabulary)

    @property
    def spec(self) -> StoreSpec:
        """The spec of the first store; vocabulary and kind are the same in all stores."""
        return self.stores[0].spec

    @property
    def teacher(self) -> str:
        """The names of all teachers, joined by commas."""
        return ", ".join(dict.fromkeys(store.spec.teacher for store in self.stores))

    @property
    def digest(self) -> str:
        """Identity of the mix: the seal's digest for one store; a digest of all seals and shares
        for several stores."""
        if len(self.stores) == 1:
            return self.stores[0].digest
        pairs = zip(self.stores, shares(self.weights), strict=True)
        lines = "".join(f"{store.digest} {share:.12g}\n" for store, share in pairs)
        return hashlib.sha256(lines.encode()).hexdigest()

    @property
    def knows_argmax(self) -> bool:
        """Whether every store knows the teacher's most likely token."""
        return all(store.spec.capture_fields["argmax"] != "unknown" for store in self.stores)

    def check_known(
        self, objective: Objective, tail: Tail | None, confidence: ConfidenceRule | None = None
    ) -> None:
        """Refuse a store that lacks what an objective reads.

        Raises:
            UsageError: names the store and its capture field.
        """
        for store in self.stores:
            check_known(store.name, store.spec.capture_fields, objective, tail, confidence)

    def check_imported(self, accept: str | None) -> None:
        """Refuse stores of another program's rows, unless they are accepted.

        Args:
            accept: what to pass to accept them; None if they are accepted.

        Raises:
            UsageError: names the store and `accept`.
        """
        for store in self.stores:
            check_imported(store.spec, f"--store {store.name}", accept)

    def order(self, seed: int) -> MixedOrder:
        """The order of the examples.

        Raises:
            UsageError: a store has no example with a response token.
        """
        orders = []
        for number, store in enumerate(self.stores):
            index = store.index
            blocks = blocks_of(index.row_count, index.row_start, store.spec.shard_rows)
            if not blocks:
                raise UsageError(
                    f"--store {store.name}: no example has a response token; expected at least "
                    "one; remove this store"
                )
            orders.append(ExampleOrder(blocks=blocks, seed=seed, store=number))
        return MixedOrder(tuple(orders), tuple(map(len, self.stores)), self.weights, seed)

    def row_counts(self) -> npt.NDArray[np.int32]:
        """Rows of each example of the concatenated stores."""
        return self._row_counts

    def token_counts(self) -> npt.NDArray[np.int32]:
        """Tokens of each example of the concatenated stores."""
        return self._token_counts

    @cached_property
    def _row_counts(self) -> npt.NDArray[np.int32]:
        return np.concatenate([store.row_counts() for store in self.stores])

    @cached_property
    def _token_counts(self) -> npt.NDArray[np.int32]:
        return np.concatenate([store.token_counts() for store in self.stores])

    @cached_property
    def _offsets(self) -> IntArray:
        return np.cumsum([0, *map(len, self.stores)], dtype=np.int64)

    def prefetch(self, examples: IntArray, row_fields: Sequence[str]) -> None:
        """Start to fetch the shards of these examples from remote stores."""
        for number, indices in self._by_store(examples):
            self.stores[number].prefetch(examples[indices] - self._offsets[number], row_fields)

    def read(self, examples: IntArray, row_fields: Sequence[str]) -> StoreBatch:
        """Read examples in the given order; `example_indices` count through all stores.

        Raises:
            CorruptError: bytes are missing or differ from the commit records.
        """
        parts, order = [], []
        for _, batch, indices in self.read_apart(examples, row_fields):
            parts.append(replace(batch, example_indices=examples[indices]))
            order.append(indices)
        return parts[0] if len(parts) == 1 else joined(parts, np.argsort(np.concatenate(order)))

    def read_apart(
        self, examples: IntArray, row_fields: Sequence[str]
    ) -> Iterator[tuple[int, StoreBatch, IntArray]]:
        """Read examples store by store.

        Yields:
            The store's number, its examples, whose `example_indices` are the store's own, and their
            indices in `examples`.
        """
        for number, indices in self._by_store(examples):
            in_store = examples[indices] - self._offsets[number]
            yield number, self.stores[number].read(in_store, row_fields), indices

    def _by_store(self, examples: IntArray) -> list[tuple[int, IntArray]]:
        """For each store with any of the examples, its number and their indices in `examples`."""
        stores = np.searchsorted(self._offsets, examples, side="right") - 1
        return [(int(store), np.flatnonzero(stores == store)) for store in np.unique(stores)]


def _check_agreement(stores: Sequence[TeacherStore], *, one_vocabulary: bool) -> None:
    first = stores[0]
    for other in stores[1:]:
        if one_vocabulary and other.spec.vocab_digest != first.spec.vocab_digest:
            raise IdentityError(
                f"--store {other.name}: vocabulary digest is {other.spec.vocab_digest[:12]}; "
                f"expected {first.spec.vocab_digest[:12]}, that of {first.name}; mix stores of one "
                "vocabulary only"
            )
        if other.spec.kind != first.spec.kind:
            raise UsageError(
                f"--store {other.name}: holds {other.spec.kind} rows; expected {first.spec.kind} "
                f"rows as in {first.name}, because their losses differ; mix stores of one kind only"
            )
    digests = [store.digest for store in stores]
    for number, digest in enumerate(digests):
        if digest in digests[:number]:
            raise UsageError(
                f"--store {stores[number].name}: is listed twice (seal {digest[:12]}); expected "
                "each store once; pass it once, with the sum of the weights"
            )


def joined(parts: Sequence[StoreBatch], order: IntArray) -> StoreBatch:
    """Concatenate batches, then put their examples into the given order [B].

    Rows from stores with a smaller k are padded; `num_kept` masks the padding.
    """
    tokens = np.concatenate([np.diff(part.token_offsets) for part in parts])
    rows = np.concatenate([np.diff(part.row_offsets) for part in parts])
    token_index, row_index = _ranges(tokens, order), _ranges(rows, order)
    picks = {"example_indices": order, "token_ids": token_index, "is_response": token_index}
    columns: dict[str, Any] = {
        "token_offsets": np.cumsum([0, *tokens[order]], dtype=np.int64),
        "row_offsets": np.cumsum([0, *rows[order]], dtype=np.int64),
    }
    for field in fields(StoreBatch):
        values = [getattr(part, field.name) for part in parts]
        if field.name not in columns and values[0] is not None:
            whole = np.concatenate(_padded_to_widest(values))
            columns[field.name] = whole[picks.get(field.name, row_index)]
    return StoreBatch(**columns)


def _ranges(counts: Array, order: IntArray) -> IntArray:
    """Index of the entries of B items in their new order; item b has `counts[b]` entries."""
    starts = np.cumsum(counts) - counts
    new_starts = np.cumsum(counts[order]) - counts[order]
    return np.repeat(starts[order] - new_starts, counts[order]) + np.arange(counts.sum())


def _padded_to_widest(columns: list[Array]) -> list[Array]:
    if columns[0].ndim == 1:
        return columns
    widest = max(column.shape[1] for column in columns)
    filler = -np.inf if columns[0].dtype.kind == "f" else 0
    return [
        np.pad(column, ((0, 0), (0, widest - column.shape[1])), constant_values=filler)
        for column in columns
    ]


def many_epochs(
    mix: StoreMix, order: MixedOrder, *, steps: int, batch: int, flags: tuple[str, str]
) -> Iterator[str]:
    """One line for each store that a run passes over more than `MANY_EPOCHS` times.

    Args:
        mix: the stores.
        order: of their examples.
        steps: of the run.
        batch: examples of a step.
        flags: names of the options that set the two.
    """
    each = zip(mix.stores, order.orders, shares(mix.weights), strict=True)
    for store, own, share in each:
        epochs = steps * batch * share / own.num_examples
        if epochs > MANY_EPOCHS:
            yield (
                f"warning: {flags[0]} {steps:,} x {flags[1]} {batch:,}"
                + (f" x {share:.1%}" if share < 1 else "")
                + f" = {epochs:,.0f} epochs of the {own.num_examples:,} examples of "
                f"{store.name}; expected at most {MANY_EPOCHS}: {flags[0]} "
                f"{max(1, round(steps / epochs)):,} is one epoch"
            )
