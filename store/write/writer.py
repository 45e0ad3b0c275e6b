"""StoreWriter: commits the shards of a planned store, in any sequence, and seals it.

Legend: R rows of a shard, k cells per row.

Every write goes through publish.py: files are staged and synced, a record is created exclusively,
and only then do the files enter data.zarr. A worker writes a whole shard of every row array: two
writers in one Zarr shard would lose data without an error.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from caskd.store.commits import commit_record, publish, write_seal
from caskd.store.errors import IncompleteError, StoreNotFoundError
from caskd.store.format import (
    ENVIRONMENT,
    SEAL,
    STAGING,
    STATUSES,
    Array,
    ExampleIndex,
    StoreSpec,
    canonical_json,
    encode_shards,
)
from caskd.store.inspect import PLAN_COUNTS, card, text_counts
from caskd.store.io import files
from caskd.store.read import StoreArrays, TeacherStore
from caskd.store.write.planner import find_store


@dataclass(frozen=True)
class ShardExample:
    """One example of a shard: the teacher's input, and the position of its rows."""

    index: int
    token_ids: npt.NDArray[np.uint32]
    is_response: npt.NDArray[np.uint8]
    row_start: int  # within the shard
    row_count: int


@dataclass(frozen=True)
class ShardWork:
    """The work of one shard: its examples in corpus order."""

    shard: int
    examples: Sequence[ShardExample]

    @property
    def num_rows(self) -> int:
        """Rows to compute, without the filler."""
        return sum(example.row_count for example in self.examples)


class StoreWriter:
    """Fills the shards of a planned store.

    Raises:
        StoreNotFoundError: `path` holds no planned store.
        StoreWriteError: the store is not sealed and its directory is not writable.
    """

    def __init__(self, path: str | Path) -> None:
        self.root = Path(path)
        spec = find_store(self.root)
        if spec is None:
            raise StoreNotFoundError(
                f"{path}: no store; expected a planned one; run caskd plan first"
            )
        self.spec: StoreSpec = spec
        self.layouts = spec.row_layouts()
        self._store = TeacherStore(StoreArrays(self.root, spec))
        publish.sweep(self.root)
        if not self.sealed:
            publish.check_writable(self.root)

    @property
    def sealed(self) -> bool:
        """Whether the store is sealed; a sealed store never changes."""
        return files.regular_size(self.root / SEAL) is not None

    def missing_shards(self) -> list[int]:
        """Shards that are not committed; moves files of committed shards that are in staging."""
        shards = range(self.spec.num_shards)
        return [shard for shard in shards if not self._complete(commit_record.shard_unit(shard))]

    def is_complete(self, unit: str) -> bool:
        """Whether `unit` is committed and all its files exist; moves those still in staging."""
        return publish.is_complete(self.root, unit)

    def _complete(self, unit: str) -> bool:
        if not commit_record.is_committed(self.root, unit):
            return False
        publish.roll_forward(self.root, commit_record.read_record(self.root, unit))
        return True

    @cached_property
    def _index(self) -> ExampleIndex:
        return self._store.index

    def shard(self, shard: int) -> ShardWork:
        """The examples whose rows are in `shard`."""
        index, first = self._index, shard * self.spec.shard_rows
        inside = (index.row_count > 0) & (index.row_start // self.spec.shard_rows == shard)
        chosen = np.flatnonzero(inside)
        return ShardWork(shard, self._examples(chosen, index.row_start[chosen] - first))

    def _examples(self, chosen: Array, row_starts: Array) -> list[ShardExample]:
        batch = self._store.read(chosen, fields=())
        return [
            ShardExample(
                index=int(example),
                token_ids=batch.token_ids[batch.token_offsets[i] : batch.token_offsets[i + 1]],
                is_response=batch.is_response[batch.token_offsets[i] : batch.token_offsets[i + 1]],
                row_start=int(row_starts[i]),
                row_count=int(self._index.row_count[example]),
            )
            for i, example in enumerate(chosen)
        ]

    def commit(
        self,
        work: ShardWork,
        rows: Mapping[str, Array],
        non_finite: Sequence[int] = (),
        counts: Mapping[str, int] | None = None,
    ) -> bool:
        """Encode a shard's rows and commit them.

        Args:
            work: the result of `shard`.
            rows: arrays [R] and [R, k] of every field, R = shard_rows; num_kept is 0 in filler.
            non_finite: indices of examples with NaN or Inf in the teacher's logits of a row.
            counts: what else the record counts of the rows, in a store of format 2.

        Returns:
            False if another worker committed this shard with other content; theirs stays.
        """
        stored = self._encoded(rows)
        contents = {
            array.key(work.shard): encode_shards(array, stored[array.name])[0]
            for array in self.layouts
        }
        statuses = Counter(self._status_of(example.index) for example in work.examples)
        for example in non_finite:
            statuses[self._status_of(example)] -= 1
            statuses["non_finite"] += 1
        facts: dict[str, Any] = {
            "num_rows": work.num_rows,
            "statuses": {name: count for name, count in statuses.items() if count},
            "non_finite_examples": sorted(int(example) for example in non_finite),
        }
        if counts and self.spec.format_version > 1:
            facts["counts"] = dict(counts)
        return publish.commit(self.root, commit_record.shard_unit(work.shard), contents, facts)

    def _encoded(self, rows: Mapping[str, Array]) -> dict[str, Array]:
        return self.spec.row_encoding.encode(rows, self.spec.vocab_size)

    def _status_of(self, example: int) -> str:
        return STATUSES[self._index.status[example]]

    def record_environment(self, facts: Mapping[str, Any], name: str | None = None) -> Path:
        """Record the environment of an attempt (versions, device, times), outside the seal.

        Args:
            facts: JSON content of the file.
            name: of the file, without `.json`; an existing file is replaced. By default, a digest
                of the content.
        """
        data = canonical_json(facts)
        name = name or hashlib.sha256(data).hexdigest()[:16]
        path = self.root / ENVIRONMENT / f"{name}.json"
        files.replace_file(path, data, self.root / STAGING)
        publish.sweep(self.root)
        return path

    def seal(self) -> dict[str, Any]:
        """Write the totals and the digest over all commits; a second call changes nothing.

        Raises:
            IncompleteError: a shard is not committed yet.
            CorruptError: a committed file is missing or differs from its record.
        """
        missing = self.missing_shards()
        if missing:
            raise IncompleteError(
                f"{self.root}: {len(missing)} of {self.spec.num_shards} shards are not committed; "
                "run caskd precompute again to fill them"
            )
        counted = text_counts(self.root)
        return write_seal(
            self.root, self.spec, lambda spec, totals: card(spec, totals, text_counts=counted)
        )


def record_text_counts(root: Path, counts: Mapping[str, int]) -> None:
    """Record what a plan counted of its text in `environment/plan.json`, outside the seal."""
    path = root / ENVIRONMENT / PLAN_COUNTS
    files.replace_file(path, canonical_json({"text": dict(counts)}), root / STAGING)
    publish.sweep(root)
