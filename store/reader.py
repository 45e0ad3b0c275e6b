"""Reading a store: numpy out, nothing of torch, opening costs the same for any size.

Legend: B examples asked for, T their tokens, N their rows, k cells per row.
"""

import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from caskd.store import alignment, commits, files, layout
from caskd.store.errors import CorruptError, IncompleteError, StoreNotFoundError, UsageError
from caskd.store.spec import StoreSpec

Array = npt.NDArray[Any]

CACHE_BYTES = 256 << 20


@dataclass(frozen=True)
class StoreBatch:
    """Some examples, concatenated in the order asked for.

    `logit_positions[n]` is the position, within its own example, whose logits predict row n;
    `labels[n]` is the token that stands one position later. Row fields that were not asked for
    are None. Cells of a row from `num_kept` on are padding: mask by `num_kept`, never by value.
    """

    example_indices: npt.NDArray[np.int64]  # [B]
    token_ids: npt.NDArray[np.uint32]  # [T]
    is_response: npt.NDArray[np.uint8]  # [T]
    token_offsets: npt.NDArray[np.int64]  # [B + 1]
    row_offsets: npt.NDArray[np.int64]  # [B + 1]
    logit_positions: npt.NDArray[np.int64]  # [N]
    labels: npt.NDArray[np.uint32]  # [N]
    topk_ids: npt.NDArray[np.uint32] | None = None  # [N, k], rank order
    topk_logits: npt.NDArray[np.float32] | None = None  # [N, k]
    num_kept: npt.NDArray[np.uint16] | None = None  # [N]
    logsumexp: npt.NDArray[np.float32] | None = None  # [N]
    label_logit: npt.NDArray[np.float32] | None = None  # [N]
    tail_mass: npt.NDArray[np.float32] | None = None  # [N]
    argmax: npt.NDArray[np.uint32] | None = None  # [N]
    label_rank: npt.NDArray[np.uint32] | None = None  # [N]

    @property
    def num_rows(self) -> int:
        """N."""
        return len(self.labels)

    def column(self, name: str) -> Array:
        """A row field that was asked for.

        Raises:
            UsageError: it was not read.
        """
        values: Array | None = getattr(self, name)
        if values is None:
            raise UsageError(f"field {name!r} was not read; name it in read(fields=...).")
        return values


@dataclass(frozen=True)
class ExampleIndex:
    """The example axis, whole in memory."""

    token_start: npt.NDArray[np.int64]
    token_count: npt.NDArray[np.int32]
    row_start: npt.NDArray[np.int64]
    row_count: npt.NDArray[np.int32]
    status: npt.NDArray[np.uint8]
    source_index: npt.NDArray[np.int64]
    task: npt.NDArray[np.uint16]


class TeacherStore:
    """A store opened for reading.

    Use `TeacherStore.open`. Only what a commit record names is read; a record is checked when its
    shard is first touched, and every chunk's crc32c when it is decoded.
    """

    def __init__(self, root: Path, spec: StoreSpec) -> None:
        self.root, self.spec = root, spec
        self.name = root.name
        self._layouts = {
            array.name: array
            for array in (
                *layout.TOKEN_LAYOUTS,
                *layout.EXAMPLE_LAYOUTS,
                *layout.VOCAB_LAYOUTS,
                *layout.row_layouts(spec.top_k, spec.chunk_rows, spec.shard_rows),
            )
        }
        self._row_fields = tuple(
            a.name for a in layout.row_layouts(spec.top_k, spec.chunk_rows, spec.shard_rows)
        )
        self._trusted: set[str] = set()
        self._chunks: OrderedDict[tuple[str, int], Array] = OrderedDict()
        self._cached_bytes = 0

    @classmethod
    def open(cls, url: str | Path, *, allow_unsealed: bool = False) -> "TeacherStore":
        """Open the store at `url`, a directory.

        Raises:
            StoreNotFoundError: there is none.
            IncompleteError: it is not sealed yet and `allow_unsealed` is false.
        """
        root = Path(url)
        if files.regular_size(root / "store.json") is None:
            hint = "" if root.is_dir() else " (no such directory)"
            raise StoreNotFoundError(
                f"{url}: expected a store, found no store.json{hint}. "
                "Write one with caskd precompute, or check the path."
            )
        spec = StoreSpec.from_json(files.read_small(root / "store.json"), f"{url}/store.json")
        store = cls(root, spec)
        if not (store.sealed or allow_unsealed):
            raise IncompleteError(
                f"{url}: the store is not sealed ({store.num_committed_shards()} of "
                f"{spec.num_shards} shards are committed). Run caskd precompute again to finish it."
            )
        return store

    def __len__(self) -> int:
        return self.spec.num_examples

    @property
    def sealed(self) -> bool:
        """Whether the store is finished."""
        return files.regular_size(self.root / "seal.json") is not None

    @cached_property
    def seal(self) -> dict[str, Any]:
        """Totals and digest of a sealed store."""
        try:
            value = json.loads(files.read_small(self.root / "seal.json"))
        except ValueError:
            value = None
        if not isinstance(value, dict) or "commits_digest" not in value:
            raise CorruptError(f"{self.name}/seal.json: not a seal.")
        return value

    @property
    def digest(self) -> str:
        """Digest over all commits of a sealed store: two stores with the same one are the same."""
        return str(self.seal["commits_digest"])

    def num_committed_shards(self) -> int:
        """Shards that are committed so far."""
        units = map(commits.shard_unit, range(self.spec.num_shards))
        return sum(commits.is_committed(self.root, unit) for unit in units)

    @cached_property
    def index(self) -> ExampleIndex:
        """The example axis (about 30 bytes an example)."""
        self._trust(commits.PLAN)
        columns = {a.name: self._array(a.name)[...] for a in layout.EXAMPLE_LAYOUTS}
        return ExampleIndex(**columns)

    @cached_property
    def vocab(self) -> list[bytes]:
        """Bytes of each token, index = id."""
        self._trust(commits.PLAN)
        joined = self._array("vocab_bytes")[...].tobytes()
        offsets = self._array("vocab_offsets")[...].tolist()
        return [joined[a:b] for a, b in pairwise(offsets)]

    def row_counts(self) -> npt.NDArray[np.int32]:
        """Rows of each example."""
        return self.index.row_count

    def token_counts(self) -> npt.NDArray[np.int32]:
        """Tokens of each example."""
        return self.index.token_count

    def read(
        self, indices: Sequence[int] | Array, fields: Sequence[str] | None = None
    ) -> StoreBatch:
        """Read examples, tokens and rows.

        Args:
            indices: example indices, in any order, repeats allowed.
            fields: row fields to decode; all of them by default.

        Raises:
            UsageError: an index out of range, or an unknown field.
            IncompleteError: a row's shard is not committed.
            CorruptError: bytes are missing or differ from what was committed.
        """
        chosen = np.asarray(indices, dtype=np.int64).reshape(-1)
        if len(chosen) and (chosen.min() < 0 or chosen.max() >= len(self)):
            raise UsageError(
                f"example {int(chosen.max() if chosen.min() >= 0 else chosen.min())}: "
                f"expected 0 to {len(self) - 1}."
            )
        unknown = sorted({*(fields or ())} - {*self._row_fields})
        if unknown:
            raise UsageError(
                f"field {unknown[0]!r}: expected some of {', '.join(self._row_fields)}."
            )
        index = self.index
        token_ids, is_response = (
            self._gather(name, index.token_start[chosen], index.token_count[chosen])
            for name in ("token_ids", "is_response")
        )
        rows = {
            name: self._gather(name, index.row_start[chosen], index.row_count[chosen])
            for name in (self._row_fields if fields is None else fields)
        }
        return _assemble(chosen, index, token_ids, is_response, rows)

    def _gather(self, name: str, starts: Array, counts: Array) -> Array:
        array = self._layouts[name]
        parts = [
            self._slice(array, int(start), int(start + count))
            for start, count in zip(starts, counts, strict=True)
            if count
        ]
        return np.concatenate(parts) if parts else np.zeros(array.shape(0), array.dtype)

    def _slice(self, array: layout.ArrayLayout, start: int, stop: int) -> Array:
        first, last = start // array.chunk, (stop - 1) // array.chunk
        parts = []
        for chunk in range(first, last + 1):
            values, base = self._chunk(array, chunk), chunk * array.chunk
            parts.append(values[max(start - base, 0) : stop - base])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _chunk(self, array: layout.ArrayLayout, chunk: int) -> Array:
        key = (array.name, chunk)
        if key in self._chunks:
            self._chunks.move_to_end(key)
            return self._chunks[key]
        shard = chunk * array.chunk // array.shard
        self._trust(commits.shard_unit(shard) if array.name in self._row_fields else commits.PLAN)
        start = chunk * array.chunk
        try:
            values: Array = self._array(array.name)[start : start + array.chunk]
        except (ValueError, RuntimeError, OSError) as error:
            raise CorruptError(
                f"{self.name}/{array.key(shard)}: entries from {start:,} on do not decode "
                f"({type(error).__name__}). Run caskd store verify to see what else is wrong."
            ) from None
        self._chunks[key] = values
        self._cached_bytes += values.nbytes
        while self._cached_bytes > CACHE_BYTES and len(self._chunks) > 1:
            self._cached_bytes -= self._chunks.popitem(last=False)[1].nbytes
        return values

    @cached_property
    def _group(self) -> Any:
        import zarr

        return zarr.open_group(self.root / "data.zarr", mode="r", zarr_format=3)

    def _array(self, name: str) -> Any:
        try:
            return self._group[name]
        except (KeyError, ValueError, TypeError, OSError) as error:
            raise CorruptError(
                f"{self.name}/data.zarr/{name}: does not open ({type(error).__name__})."
            ) from None

    def _trust(self, unit: str) -> None:
        """Check the commit record of `unit` and the sizes of its files, once."""
        if unit in self._trusted:
            return
        if not commits.is_committed(self.root, unit):
            if self.sealed:
                raise CorruptError(f"{self.name}/commits/{unit}.json: missing from a sealed store.")
            raise IncompleteError(f"{self.name}: shard {unit} is not committed yet.")
        for item in commits.read_record(self.root, unit).file_records:
            commits.check_size(self.root, unit, item)
        self._trusted.add(unit)


def _assemble(
    chosen: npt.NDArray[np.int64],
    index: ExampleIndex,
    token_ids: Array,
    is_response: Array,
    rows: dict[str, Array],
) -> StoreBatch:
    """Derive positions and labels of each example from its tokens and mask, and concatenate."""
    token_offsets = np.concatenate([[0], np.cumsum(index.token_count[chosen], dtype=np.int64)])
    row_offsets = np.concatenate([[0], np.cumsum(index.row_count[chosen], dtype=np.int64)])
    positions, labels = [np.zeros(0, np.int64)], [np.zeros(0, np.uint32)]
    for example, start, stop in zip(chosen, token_offsets, token_offsets[1:], strict=False):
        mask, tokens = is_response[start:stop], token_ids[start:stop]
        if index.row_count[example] == 0:
            continue
        positions.append(alignment.logit_positions(mask))
        labels.append(alignment.row_labels(tokens, mask))
        if len(labels[-1]) != index.row_count[example]:
            raise CorruptError(
                f"example {example}: {len(labels[-1])} response tokens, but "
                f"{index.row_count[example]} rows. Run caskd store verify."
            )
    return StoreBatch(
        example_indices=chosen,
        token_ids=token_ids,
        is_response=is_response,
        token_offsets=token_offsets.astype(np.int64),
        row_offsets=row_offsets.astype(np.int64),
        logit_positions=np.concatenate(positions),
        labels=np.concatenate(labels),
        **rows,
    )
