"""Lists of token ids, fitted to the rows of one shard, that make frequent ids small numbers.

Legend: N rows, k cells per row, V vocabulary, C lists of M ids, G ids of the common order.

The ids of a row are related: word beginnings, word endings, digits, another language. So the rows
of a shard are divided into C groups by their ids, and each group gets a list of its M most frequent
ids. An id's place is its position in the list of its row's group. An id that is not in the list
has the place M + its position in one common order of all V ids.

Lists are fitted to the rows that they encode and stored beside them, so a shard needs nothing else.
Costs are integers; their sums are exact, and equal rows give equal bytes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from caskd.store.cells.id_orders import kept_cells
from caskd.store.cells.octaves import from_sorted_steps, sorted_steps
from caskd.store.errors import CorruptError

Ids = npt.NDArray[np.uint32]

_ROWS_OF_A_LIST = 256
MAX_LISTS = 64
_LENGTHS = (
    (1 << 15, 2048),
    (1 << 14, 1024),
    (1 << 12, 512),
    (1 << 10, 256),
    (1 << 8, 128),
    (0, 16),
)
MAX_COMMON, _COMMON_OF_A_ROW = 1 << 14, 4
_MOST_SYMBOLS = 1 << 15  # ids further back in the common order count as one
_FIT_SYMBOLS = 1 << 12  # the same, while groups are fitted
_FIT_ROWS = 1 << 13  # rows that the groups are fitted to
_ROUNDS = 8
_CELLS = 32  # leading cells of a row that choose its group
_BITS = 128  # costs are in 1/128 bit
_MOST_COST = 2047  # so that 32 costs add up within uint16
_PRIOR = 1000  # number of ids, distributed as in the whole shard, that are added to every group
_UNSEEN = 0.02
_BLOCK = 64  # rows whose costs are added at a time


@dataclass(frozen=True)
class ListShape:
    """Number of lists C, ids of a list M, and stored ids of the common order G."""

    num_lists: int
    length: int
    common: int

    @classmethod
    def of(cls, shard_rows: int, vocab_size: int) -> "ListShape":
        """The shape for a shard of that many rows: more lists where more rows share their bytes."""
        lists = min(MAX_LISTS, 1 << max(0, (shard_rows // _ROWS_OF_A_LIST).bit_length() - 1))
        length = next(length for least, length in _LENGTHS if shard_rows >= least)
        common = min(MAX_COMMON, _COMMON_OF_A_ROW * shard_rows)
        return cls(lists, min(length, vocab_size), min(common, vocab_size))


@dataclass(frozen=True)
class IdLists:
    """The lists of one shard.

    Attributes:
        lists: positions in the common order [C, M].
        common: all ids, frequent ones first [V].
    """

    lists: Ids
    common: Ids

    def table(self) -> Ids:
        """The ids of all lists, then the common order [C M + V]."""
        return np.concatenate([self.common[self.lists].reshape(-1), self.common])

    @staticmethod
    def table_size(shape: tuple[int, ...], vocab_size: int) -> int:
        """Entries of `table`, with `shape` C, M."""
        num_lists, length = shape
        return num_lists * length + vocab_size

    def stored(self, shape: ListShape) -> tuple[Ids, Ids]:
        """The arrays on disk: steps of the lists [C, M] and of the common order [1, G]."""
        return sorted_steps(self.lists), sorted_steps(self.common[None, : shape.common])

    @classmethod
    def from_stored(cls, list_steps: Ids, common_steps: Ids, vocab_size: int) -> "IdLists":
        """Undo `stored`.

        Raises:
            CorruptError: a position or id beyond the vocabulary, or an id twice in the common
                order.
        """
        head, lists = from_sorted_steps(common_steps)[0], from_sorted_steps(list_steps)
        if max(int(head.max()), int(lists.max())) >= vocab_size:
            raise CorruptError("the lists of ids or their common order lead beyond the vocabulary")
        rest = np.ones(vocab_size, np.bool_)
        rest[head] = False
        common = np.concatenate([head, np.flatnonzero(rest).astype(np.uint32)])
        if len(common) != vocab_size:
            raise CorruptError("the common order of the lists of ids holds an id twice")
        return cls(lists, common)


def fit_lists(
    ids: Ids, num_kept: npt.NDArray[Any], vocab_size: int, shape: ListShape, own: ListShape
) -> tuple[IdLists, npt.NDArray[np.uint8]]:
    """Lists for these rows, and the list of each row [N].

    Args:
        ids: [N, k].
        num_kept: [N]; cells from there on are padding.
        vocab_size: V.
        shape: of the lists.
        own: of the part that is fitted, at most `shape`: that of a shard without filler. The rest
            costs next to nothing, where longer lists of a few rows would cost more than they save.
    """
    cells = kept_cells(num_kept, ids.shape[1])
    counts = np.bincount(ids[cells], minlength=vocab_size)
    common = np.argsort(-counts, kind="stable").astype(np.uint32)
    head = from_sorted_steps(sorted_steps(common[None, : shape.common]))[0]
    common = np.concatenate([head, np.sort(common[shape.common :])])
    places = _inverse(common)
    group = np.zeros(len(ids), np.uint8)
    if own.num_lists > 1:
        last = min(vocab_size, _FIT_SYMBOLS)
        share = np.append(counts[common[:last]], counts[common[last:]].sum()) + _UNSEEN
        used = np.flatnonzero(num_kept)
        symbols = _symbols(places, ids[used], cells[used], last)
        group[used] = _fit_groups(symbols, share / share.sum(), own.num_lists)
    last = min(vocab_size, _MOST_SYMBOLS)
    symbols = _symbols(places, ids, cells, last)
    lists = np.tile(np.arange(shape.length, dtype=np.uint32), (shape.num_lists, 1))
    for one, counted in zip(lists, _counts(symbols, group, own, last), strict=False):
        one[: own.length] = first = _longest(counted[:last], own.length)
        others = np.setdiff1d(np.arange(shape.length, dtype=np.uint32), first)
        one[own.length :] = others[: shape.length - own.length]
    lists = from_sorted_steps(sorted_steps(lists))
    return IdLists(lists, common), group


def _symbols(places: Ids, ids: Ids, cells: npt.NDArray[np.bool_], last: int) -> Ids:
    """Positions [N, k] of ids in the common order, those from `last` on as one; then padding."""
    symbols = np.minimum(places, np.uint32(last))[ids]
    symbols[~cells] = last + 1  # costs nothing
    return symbols


def _fit_groups(
    symbols: Ids, share: npt.NDArray[np.float64], num_lists: int
) -> npt.NDArray[np.uint8]:
    """The group [N] of each row, by rounds of counting and choosing."""
    every = max(1, len(symbols) // _FIT_ROWS)
    sample = symbols[::every]
    group = ((np.arange(len(sample)) * 2654435761 % 2**32 * num_lists) >> 32).astype(np.uint8)
    costs = np.zeros((num_lists, len(share) + 1), np.uint16)
    usual = np.log2(_PRIOR * share)
    for _ in range(_ROUNDS):
        for number in range(num_lists):
            members = sample[group == number]
            counts = np.bincount(members.reshape(-1), minlength=len(share) + 1)[:-1]
            bits = usual.copy()
            found = np.flatnonzero(counts)
            bits[found] = np.log2(counts[found] + _PRIOR * share[found])
            bits -= np.log2(counts.sum() + _PRIOR)
            bits *= -_BITS
            costs[number, :-1] = np.minimum(np.rint(bits, out=bits), _MOST_COST, out=bits)
        by_symbol = np.ascontiguousarray(costs.T)
        group = _cheapest(by_symbol, sample)
    return _cheapest(by_symbol, symbols)


def _cheapest(costs: npt.NDArray[np.uint16], symbols: Ids) -> npt.NDArray[np.uint8]:
    """For each row [N], the group whose costs [symbols, C] have the smallest sum over its cells."""
    chosen = np.empty(len(symbols), np.uint8)
    for start in range(0, len(symbols), _BLOCK):
        sums = costs.take(symbols[start : start + _BLOCK, :_CELLS], axis=0)
        while sums.shape[1] > 1:  # halves: long vectors add faster than many short ones
            half = sums.shape[1] // 2
            rest = sums[:, 2 * half :]
            sums = sums[:, :half] + sums[:, half : 2 * half]
            if rest.shape[1]:
                sums[:, :1] += rest
        chosen[start : start + _BLOCK] = sums[:, 0].argmin(axis=1)
    return chosen


def _counts(
    symbols: Ids, group: npt.NDArray[np.uint8], shape: ListShape, last: int
) -> Iterator[npt.NDArray[np.int64]]:
    """The counts [symbols] of each group."""
    for number in range(shape.num_lists):
        yield np.bincount(symbols[group == number].reshape(-1), minlength=last + 2)


def _longest(counts: npt.NDArray[np.int64], length: int) -> Ids:
    """The most frequent symbols [length], ties to the lowest."""
    keys = counts.astype(np.uint64) << np.uint64(32)
    keys |= np.arange(len(counts), 0, -1, dtype=np.uint64)
    first = np.sort(keys)[::-1][:length] & np.uint64(0xFFFFFFFF)
    return (len(counts) - first).astype(np.uint32)


def _inverse(order: Ids) -> Ids:
    """The position of each id in an order of all ids."""
    places = np.empty_like(order)
    places[order] = np.arange(len(order), dtype=np.uint32)
    return places


class ListPlaces:
    """The place of each id in each list."""

    def __init__(self, lists: IdLists) -> None:
        num_lists, self._length = lists.lists.shape
        self._common = _inverse(lists.common)
        self._size = min(len(lists.common), _MOST_SYMBOLS)
        outside = np.arange(self._size, dtype=np.uint32) + np.uint32(self._length)
        self._places = np.tile(outside, (num_lists, 1))
        np.put_along_axis(
            self._places, lists.lists, np.arange(self._length, dtype=np.uint32)[None], 1
        )

    def of(self, ids: Ids, group: npt.NDArray[np.uint8]) -> Ids:
        """Places [N, k] of ids [N, k] in the lists of their rows' groups [N]."""
        common = self._common[ids]
        near = np.minimum(common, self._size - 1)
        listed = self._places.reshape(-1).take(near + group.astype(np.intp)[:, None] * self._size)
        return np.where(common < self._size, listed, common + np.uint32(self._length))


def ids_of_places(
    places: npt.NDArray[Any], group: npt.NDArray[np.uint8], table: Ids, shape: tuple[int, ...],
    names: tuple[str, str] = ("topk_id_places", "topk_id_list"),
) -> Ids:  # fmt: skip
    """Ids [k, N] of places [k, N].

    Args:
        places: of ids, by rank.
        group: list of each row [N].
        table: `IdLists.table`.
        shape: C, M.
        names: of the arrays that hold the places and the lists of rows.

    Raises:
        CorruptError: a place or list that does not exist.
    """
    num_lists, length = shape
    behind = num_lists * length
    if len(group) and int(group.max()) >= num_lists:
        raise CorruptError(f"{names[1]} holds {int(group.max())}; expected below {num_lists}")
    check_places(places, table, shape, names[0])
    starts = group.astype(np.int32) * np.int32(length)
    index = places.astype(np.int32)
    far = np.subtract(np.int32(length - 1), index)  # below 0 behind the list
    np.right_shift(far, 31, out=far)  # all bits there: arithmetic is faster than where()
    np.bitwise_and(far, np.int32(behind - length) - starts, out=far)
    index += far
    index += starts
    # Indices of numpy's own type: take() would convert others more slowly.
    return table.take(index.astype(np.intp), mode="wrap")


def check_places(
    places: npt.NDArray[Any], table: Ids, shape: tuple[int, ...], name: str = "topk_id_places"
) -> None:
    """Check that every place exists in a list or in the common order.

    Raises:
        CorruptError: a place does not.
    """
    most = num_places(table, shape)
    if places.size and int(places.max()) >= most:
        raise CorruptError(f"{name} lead to {int(places.max()):,}, beyond the vocabulary")


def num_places(table: Ids, shape: tuple[int, ...]) -> int:
    """Number of places M + V, with `shape` C, M."""
    return len(table) - (shape[0] - 1) * shape[1]
