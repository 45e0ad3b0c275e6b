"""The rows of a store: the three kinds, their fields, and the interface of a row encoding.

Legend: N rows, k cells per row, C orders of ids, V vocabulary.

A row describes the teacher's distribution of one predicted token. The kind decides which fields a
row has; the encoding decides which arrays on disk hold these fields. row_encodings.py lists all
encodings.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from caskd.store.errors import CorruptError
from caskd.store.format.codecs import Array, Chain
from caskd.store.format.layout import COLUMN_CHUNK, ArrayLayout


@dataclass(frozen=True)
class RowArray:
    """One array on disk with an entry per row.

    Attributes:
        name: of the array.
        dtype: of its values.
        chain: codec chain of its chunks.
        limit: largest valid value: the last id of the vocabulary, the number of cells, or the last
            order of ids; None where any value is valid.
        is_column: one value per row; otherwise k cells per row.
        field: row field that the array stores, where its name differs.
    """

    name: str
    dtype: str
    chain: Chain
    limit: Literal["id", "num_cells", "order"] | None = None
    is_column: bool = False
    field: str | None = None

    def layout(self, num_cells: int, chunk_rows: int, shard_rows: int) -> ArrayLayout:
        """The array in a store of this geometry; a column has larger chunks than cells have."""
        if not self.is_column:
            return ArrayLayout(self.name, self.dtype, chunk_rows, shard_rows, self.chain, num_cells)
        chunk = math.gcd(COLUMN_CHUNK, shard_rows) if shard_rows > COLUMN_CHUNK else shard_rows
        return ArrayLayout(self.name, self.dtype, chunk, shard_rows, self.chain)


@dataclass(frozen=True)
class RowKind:
    """Which part of the teacher's distribution a row keeps.

    Attributes:
        name: `capture.kind` of the identity.
        cells_keys: fields of the identity's `capture` whose sum is k, the number of cells per row.
        cells: fields of k values per row; the first one holds token ids.
        columns: fields of one value per row.
        distribution: fields that, with `num_kept`, give the teacher's distribution.
        kept: what a row keeps, with the names of `cells_keys` in braces.
        kept_from: what that is kept from, with `{}` for V.
    """

    name: str
    cells_keys: tuple[str, ...]
    cells: tuple[RowArray, ...]
    columns: tuple[RowArray, ...]
    distribution: tuple[str, ...]
    kept: str
    kept_from: str

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of all fields of a row."""
        return tuple(array.name for array in (*self.cells, *self.columns))

    @property
    def id_field(self) -> str:
        """The field that holds the token ids of the cells."""
        return self.cells[0].name

    @property
    def has_tail(self) -> bool:
        """Whether `tail_mass` holds the probability outside the cells."""
        return "tail_mass" in self.fields

    def num_cells(self, capture: Mapping[str, Any]) -> int:
        """k, the number of cells per row, by the identity's `capture`."""
        return sum(int(capture[key]) for key in self.cells_keys)

    def kept_text(self, capture: Mapping[str, Any]) -> str:
        """What a row keeps, such as `top 64`, by the identity's `capture`."""
        return self.kept.format(**{key: capture[key] for key in self.cells_keys})

    def kept_of_text(self, capture: Mapping[str, Any], vocab_size: int) -> str:
        """What a row keeps and from what, such as `top 64 of 32,000 logits`."""
        return self.kept_text(capture) + self.kept_from.format(vocab_size)


_NUM_KEPT = RowArray("num_kept", "uint16", "shuffled", "num_cells", is_column=True)
_LOGSUMEXP = RowArray("logsumexp", "float32", "packed", is_column=True)
_LABEL_LOGIT = RowArray("label_logit", "float32", "packed", is_column=True)
_TAIL_MASS = RowArray("tail_mass", "float32", "packed", is_column=True)
_ARGMAX = RowArray("argmax", "uint32", "packed", "id", is_column=True)
_LABEL_RANK = RowArray("label_rank", "uint32", "packed", "id", is_column=True)

TOPK = RowKind(
    name="topk",
    cells_keys=("top_k",),
    cells=(
        RowArray("topk_ids", "uint32", "packed", "id"),
        RowArray("topk_logits", "float32", "transposed"),
    ),
    columns=(_NUM_KEPT, _LOGSUMEXP, _LABEL_LOGIT, _TAIL_MASS, _ARGMAX, _LABEL_RANK),
    distribution=("topk_ids", "topk_logits", "logsumexp", "tail_mass"),
    kept="top {top_k}",
    kept_from=" of {:,} logits",
)
SAMPLED = RowKind(
    name="sampled",
    cells_keys=("num_samples",),
    cells=(
        RowArray("sampled_ids", "uint32", "packed", "id"),
        RowArray("sampled_counts", "uint16", "transposed", "num_cells"),
    ),
    columns=(_NUM_KEPT, _LOGSUMEXP, _LABEL_LOGIT, _ARGMAX, _LABEL_RANK),
    distribution=("sampled_ids", "sampled_counts"),
    kept="{num_samples:,} draws",
    kept_from=" from all {:,} tokens",
)
HEAD_SAMPLED = RowKind(
    name="head_sampled",
    cells_keys=("head", "num_samples"),
    cells=(
        RowArray("sampled_ids", "uint32", "packed", "id"),
        RowArray("sampled_counts", "uint16", "transposed", "num_cells"),
        RowArray("head_logits", "float32", "transposed"),
    ),
    columns=(
        _NUM_KEPT,
        RowArray("num_head", "uint16", "shuffled", "num_cells", is_column=True),
        _LOGSUMEXP,
        _LABEL_LOGIT,
        RowArray("drawn_mass", "float32", "packed", is_column=True),
        _ARGMAX,
        _LABEL_RANK,
    ),
    distribution=(
        "sampled_ids", "sampled_counts", "head_logits", "num_head", "logsumexp", "drawn_mass",
    ),
    kept="top {head} and {num_samples:,} draws of the rest",
    kept_from=" of all {:,} tokens",
)  # fmt: skip
ROW_KINDS = MappingProxyType({kind.name: kind for kind in (TOPK, SAMPLED, HEAD_SAMPLED)})
FIELD_DTYPES = MappingProxyType(
    {
        array.name: array.dtype
        for kind in ROW_KINDS.values()
        for array in (*kind.cells, *kind.columns)
    }
)


@dataclass(frozen=True)
class Derived:
    """An intermediate array of a decoder, which a reader keeps because several fields need it.

    Attributes:
        dtype: of its values.
        sources: arrays that it is computed from.
        of_shard: whether it belongs to a shard; otherwise it belongs to a chunk of cells.
    """

    dtype: str
    sources: tuple[str, ...]
    of_shard: bool = False


class RowEncoding(ABC):
    """How the rows of one kind are stored.

    Attributes:
        kind: of the rows.
        name: `encoding` of the identity.
        cell_arrays: arrays on disk that hold the cells.
        sources: for each field that `decode` computes, the arrays that it reads: on disk, tables
            or derived. Any other field is the array of its name.
        derived: intermediate arrays that `decode` computes too, by name.
        uses_id_orders: whether ids are stored as positions in `id_order`, as earlier versions did.
        exact: whether every value comes back with the bits that the teacher computed.
        cell_bytes: bytes per cell on disk, smallest and largest of real stores.
        is_written: whether a new store may have it; others are only read, and encode nothing.
    """

    kind: RowKind
    name: str
    cell_arrays: tuple[RowArray, ...]
    sources: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    derived: Mapping[str, Derived] = MappingProxyType({})
    uses_id_orders: bool = False
    exact: bool = True
    is_written: bool = True
    cell_bytes: tuple[float, float] = (0.0, 0.0)

    def encode(self, rows: Mapping[str, Array], vocab_size: int) -> dict[str, Array]:
        """The arrays on disk of a shard, by name.

        Args:
            rows: every field of the kind, [N] or [N, k].
            vocab_size: V.
        """
        raise AssertionError(self.name)

    @abstractmethod
    def decode(
        self, name: str, stored: Mapping[str, Array], id_orders: Array | None, out: Array
    ) -> None:
        """Decode a field of `sources` for the rows of one chunk, or an array of `derived`.

        Args:
            name: of the field or array.
            stored: its source arrays: [N] or [N, k], tables whole.
            id_orders: orders of ids [C, V]; None where the encoding uses none.
            out: [N] or [N, k], overwritten.

        Raises:
            CorruptError: values that no row can have.
        """

    @property
    def columns(self) -> tuple[RowArray, ...]:
        """The arrays on disk with one value per row."""
        return self.kind.columns

    def tables(self, vocab_size: int, shard_rows: int) -> tuple[ArrayLayout, ...]:
        """Arrays on disk that each shard holds beside its rows, one chunk a shard; none here."""
        return ()

    def derived_shape(
        self, name: str, num_cells: int, chunk_rows: int, tables: Mapping[str, tuple[int, ...]],
        vocab_size: int,
    ) -> tuple[int, ...]:  # fmt: skip
        """Shape of an array of `derived`."""
        raise AssertionError(name)

    @property
    def arrays(self) -> tuple[RowArray, ...]:
        """All row arrays on disk."""
        return (*self.cell_arrays, *self.columns)

    def layouts(self, num_cells: int, chunk_rows: int, shard_rows: int) -> tuple[ArrayLayout, ...]:
        """The row arrays on disk of a store of this geometry."""
        return tuple(array.layout(num_cells, chunk_rows, shard_rows) for array in self.arrays)

    def limits(self, *, vocab_size: int, num_cells: int, num_orders: int) -> dict[str, int]:
        """Largest valid value of each row array that holds ids, positions or counts."""
        largest = {"id": vocab_size - 1, "num_cells": num_cells, "order": num_orders - 1}
        return {array.name: largest[array.limit] for array in self.arrays if array.limit}

    def arrays_behind(self, fields: Iterable[str]) -> list[str]:
        """Names of the arrays on disk that reading these fields, or derived arrays, touches."""
        found: set[str] = set()
        for name in fields:
            derived = self.derived.get(name)
            sources = derived.sources if derived else self.sources.get(name)
            found |= {name} if sources is None else {*self.arrays_behind(sources)}
        return sorted(found)


def check_heads(num_head: Array, num_kept: Array) -> None:
    """Check that no row of draws with a head has more cells in the head than in all.

    Raises:
        CorruptError: a row has.
    """
    if (num_head > num_kept).any():
        raise CorruptError("num_head exceeds num_kept", cure="run caskd store verify")
