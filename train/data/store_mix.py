"""One or several stores opened for training, and read as one.

Legend: S stores, B examples asked for, T their tokens, N their rows, k cells per row.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from caskd.store import StoreBatch, StoreSpec, TeacherStore
from caskd.store.errors import IdentityError, UsageError
from caskd.train.data.mixture import MixedOrder, check_weights, parse_store, shares
from caskd.train.data.order import ExampleOrder, IntArray, blocks_of

Array = npt.NDArray[Any]


class StoreMix:
    """Stores of one vocabulary and their weights. Use `StoreMix.open`.

    Attributes:
        stores: as they were named.
        weights: one per store, up to a common factor.
    """

    def __init__(self, stores: Sequence[TeacherStore], weights: Sequence[float]) -> None:
        self.stores, self.weights = tuple(stores), tuple(weights)
        _check_agreement(self.stores)
        check_weights(self.weights)

    @classmethod
    def open(cls, names: Sequence[str]) -> "StoreMix":
        """Open stores given as URL or URL=weight.

        Raises:
            CaskdError: no store, not sealed, a bad weight, or stores that cannot be mixed.
        """
        if not names:
            raise UsageError("--store: expected at least one store, got none.")
        parsed = [parse_store(name) for name in names]
        return cls([TeacherStore.open(url) for url, _ in parsed], [w for _, w in parsed])

    @property
    def spec(self) -> StoreSpec:
        """Of the first store; the vocabulary and the kind are those of all."""
        return self.stores[0].spec

    @property
    def teacher(self) -> str:
        """The teachers' names."""
        return ", ".join(dict.fromkeys(store.spec.teacher for store in self.stores))

    @property
    def digest(self) -> str:
        """Two mixes with the same one are the same: the seal's for one store; of all seals and
        shares for several."""
        if len(self.stores) == 1:
            return self.stores[0].digest
        pairs = zip(self.stores, shares(self.weights), strict=True)
        lines = "".join(f"{store.digest} {share:.12g}\n" for store, share in pairs)
        return hashlib.sha256(lines.encode()).hexdigest()

    def order(self, seed: int) -> MixedOrder:
        """Which example is read when.

        Raises:
            UsageError: a store has no example with a response token.
        """
        orders = []
        for number, store in enumerate(self.stores):
            index = store.index
            blocks = blocks_of(index.row_count, index.row_start, store.spec.shard_rows)
            if not blocks:
                raise UsageError(f"--store {store.name}: no example has a response token.")
            orders.append(ExampleOrder(blocks=blocks, seed=seed, store=number))
        return MixedOrder(tuple(orders), tuple(map(len, self.stores)), self.weights, seed)

    def row_counts(self) -> npt.NDArray[np.int32]:
        """Rows of each example of all stores, one store behind the other."""
        return self._row_counts

    def token_counts(self) -> npt.NDArray[np.int32]:
        """Tokens of each example of all stores, one store behind the other."""
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
        """Start to fetch what reading these examples will need, where a store is a remote one."""
        for number, places in self._by_store(examples):
            self.stores[number].prefetch(examples[places] - self._offsets[number], row_fields)

    def read(self, examples: IntArray, row_fields: Sequence[str]) -> StoreBatch:
        """Read examples, in the order asked for; `example_indices` count through all stores.

        Raises:
            CorruptError: bytes are missing or differ from what was committed.
        """
        parts, order = [], []
        for number, places in self._by_store(examples):
            own = examples[places] - self._offsets[number]
            batch = self.stores[number].read(own, row_fields)
            parts.append(replace(batch, example_indices=examples[places]))
            order.append(places)
        return parts[0] if len(parts) == 1 else joined(parts, np.argsort(np.concatenate(order)))

    def _by_store(self, examples: IntArray) -> list[tuple[int, IntArray]]:
        """For each store that has any of the examples: its number, and their places."""
        which = np.searchsorted(self._offsets, examples, side="right") - 1
        return [(int(s), np.flatnonzero(which == s)) for s in np.unique(which)]


def _check_agreement(stores: Sequence[TeacherStore]) -> None:
    first = stores[0]
    for other in stores[1:]:
        if other.spec.vocab_digest != first.spec.vocab_digest:
            raise IdentityError(
                f"--store: the vocabulary of {other.name} (digest {other.spec.vocab_digest[:12]}) "
                f"is not that of {first.name} (digest {first.spec.vocab_digest[:12]}). "
                "Mix stores of one vocabulary only."
            )
        if other.spec.kind != first.spec.kind:
            raise UsageError(
                f"--store: {other.name} holds {other.spec.kind} rows, but {first.name} "
                f"{first.spec.kind}. Mix stores of one kind only: their losses differ."
            )
    digests = [store.digest for store in stores]
    for number, digest in enumerate(digests):
        if digest in digests[:number]:
            raise UsageError(
                f"--store: {stores[number].name} is given twice (seal {digest[:12]}). "
                "Name it once, with the sum of the weights."
            )


def joined(parts: Sequence[StoreBatch], order: IntArray) -> StoreBatch:
    """Batches as one, its examples in the given order [B] of the concatenated ones.

    Cells of rows from stores of a smaller k are filled up; `num_kept` masks them.
    """
    tokens, rows = (
        np.concatenate([np.diff(getattr(part, name)) for part in parts])
        for name in ("token_offsets", "row_offsets")
    )
    token_index, row_index = _ranges(tokens, order), _ranges(rows, order)
    picks = {"example_indices": order, "token_ids": token_index, "is_response": token_index}
    columns: dict[str, Any] = {
        "token_offsets": np.cumsum([0, *tokens[order]], dtype=np.int64),
        "row_offsets": np.cumsum([0, *rows[order]], dtype=np.int64),
    }
    for field in fields(StoreBatch):
        values = [getattr(part, field.name) for part in parts]
        if field.name not in columns and values[0] is not None:
            whole = np.concatenate(_equally_wide(values))
            columns[field.name] = whole[picks.get(field.name, row_index)]
    return StoreBatch(**columns)


def _ranges(counts: Array, order: IntArray) -> IntArray:
    """Index that brings the entries of items, `counts` [B] of each, into the items' new order."""
    starts = np.cumsum(counts) - counts
    new_starts = np.cumsum(counts[order]) - counts[order]
    return np.repeat(starts[order] - new_starts, counts[order]) + np.arange(counts.sum())


def _equally_wide(columns: list[Array]) -> list[Array]:
    if columns[0].ndim == 1:
        return columns
    widest = max(column.shape[1] for column in columns)
    filler = -np.inf if columns[0].dtype.kind == "f" else 0
    return [
        np.pad(column, ((0, 0), (0, widest - column.shape[1])), constant_values=filler)
        for column in columns
    ]
