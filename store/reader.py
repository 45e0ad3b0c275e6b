"""Reading a store: numpy out, nothing of torch, opening costs the same for any size.

Legend: B examples asked for, T their tokens, N their rows, k cells per row.
"""

import json
from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from caskd.store import commits, files, layout
from caskd.store.arrays import StoreArrays
from caskd.store.batch import ExampleIndex, StoreBatch, assemble
from caskd.store.errors import (
    CorruptError,
    IncompleteError,
    StoreNotFoundError,
    UsageError,
)
from caskd.store.spec import StoreSpec

Array = npt.NDArray[Any]

CACHE_BYTES = 256 << 20
MAX_OPEN_FILES = 64


class TeacherStore:
    """A store opened for reading.

    Use `TeacherStore.open`. Only what a commit record names is read; a record is checked when its
    shard is first touched, and every chunk's crc32c when it is decoded.
    """

    def __init__(self, root: Path, spec: StoreSpec) -> None:
        self.root, self.spec = root, spec
        self.name = root.name
        self._arrays = StoreArrays(root, spec)

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
        return ExampleIndex(**{a.name: self._arrays.whole(a.name) for a in layout.EXAMPLE_LAYOUTS})

    @cached_property
    def vocab(self) -> list[bytes]:
        """Bytes of each token, index = id."""
        joined, offsets = (
            self._arrays.whole("vocab_bytes").tobytes(),
            self._arrays.whole("vocab_offsets"),
        )
        return [joined[a:b] for a, b in pairwise(offsets.tolist())]

    @property
    def id_order(self) -> npt.NDArray[np.uint32] | None:
        """Ids, most frequent first, of a compact store; None where the encoding has none."""
        return self._arrays.id_order

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
        unknown = sorted({*(fields or ())} - {*layout.ROW_FIELDS})
        if unknown:
            raise UsageError(
                f"field {unknown[0]!r}: expected some of {', '.join(layout.ROW_FIELDS)}."
            )
        index = self.index
        token_ids, is_response = (
            self._arrays.gather(name, index.token_start[chosen], index.token_count[chosen])
            for name in ("token_ids", "is_response")
        )
        rows = {
            name: self._arrays.gather(name, index.row_start[chosen], index.row_count[chosen])
            for name in (layout.ROW_FIELDS if fields is None else fields)
        }
        return assemble(chosen, index, token_ids, is_response, rows)
