"""Planning a store: the whole geometry, before the teacher runs.

Legend: E examples, T tokens, V vocabulary.

Teacher forcing means that every length is known after tokenization. Examples stand in corpus
order, next-fit: none straddles a shard, and the unused rows at a shard's end stay empty.
"""

import json
import shutil
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from caskd.store import alignment, commits, files, layout
from caskd.store.errors import UsageError
from caskd.store.examples import TokenizedExample
from caskd.store.shard_file import encode_shards, encode_whole
from caskd.store.spec import StoreSpec, check_identity

STORE_JSON = "store.json"
_BEFORE_A_PLAN = frozenset({commits.STAGING, "commits"})


def find_store(path: str | Path) -> StoreSpec | None:
    """The store planned at `path`, or None; completes a plan that was decided but not published.

    Raises:
        UsageError: something else than a store is there.
    """
    root = Path(path)
    if files.regular_size(root / STORE_JSON) is not None:
        return StoreSpec.from_json(files.read_small(root / STORE_JSON), f"{path}/{STORE_JSON}")
    if not root.exists():
        return None
    if not root.is_dir():
        raise UsageError(f"{path}: a file is there; expected a directory for the store.")
    if commits.is_committed(root, commits.PLAN):
        commits.roll_forward(root, commits.read_record(root, commits.PLAN))
        return find_store(root)
    foreign = sorted(entry.name for entry in root.iterdir() if entry.name not in _BEFORE_A_PLAN)
    if foreign:
        raise UsageError(
            f"{path}: holds {foreign[0]!r} but no store. Give an empty or new directory to --store."
        )
    return None


class _Axis:
    """Streams one token array into staged shard files, one shard in memory."""

    def __init__(self, array: layout.ArrayLayout, staged: Path) -> None:
        self.array, self.staged = array, staged
        self.pending: list[layout.Array] = []
        self.num_pending = self.num_shards = self.length = 0
        self.records: list[commits.FileRecord] = []

    def append(self, values: layout.Array) -> None:
        self.pending.append(values)
        self.num_pending += len(values)
        self.length += len(values)
        if self.num_pending >= self.array.shard:
            self._flush(self.num_pending - self.num_pending % self.array.shard)

    def _flush(self, amount: int) -> None:
        values = np.concatenate(self.pending) if self.pending else np.zeros(0, self.array.dtype)
        for data in encode_shards(self.array, values[:amount]):
            self.records.append(_stage(self.staged, self.array.key(self.num_shards), data))
            self.num_shards += 1
        self.pending, self.num_pending = [values[amount:]], len(values) - amount

    def close(self) -> list[commits.FileRecord]:
        if self.num_pending:
            self._flush(self.num_pending)
        metadata = self.array.metadata_bytes(self.length)
        self.records.append(_stage(self.staged, self.array.metadata_key, metadata))
        return self.records


class _Geometry:
    """Places examples on the axes, in corpus order, next-fit."""

    def __init__(self, shard_rows: int) -> None:
        self.shard_rows = shard_rows
        self.columns: dict[str, list[int]] = {a.name: [] for a in layout.EXAMPLE_LAYOUTS}
        self.tasks: dict[str, int] = {}
        self.statuses: Counter[str] = Counter()
        self.num_tokens = self.next_row = self.num_rows = 0

    def place(self, example: TokenizedExample) -> None:
        rows = alignment.num_rows(example.is_response)
        if rows > self.shard_rows:
            raise UsageError(
                f"example {example.source_index}: its response has {rows:,} rows, more than a "
                f"shard of {self.shard_rows:,}. Raise --shard-rows, or set --max-length."
            )
        if self.next_row % self.shard_rows + rows > self.shard_rows:
            self.next_row += self.shard_rows - self.next_row % self.shard_rows
        values = {
            "token_start": self.num_tokens,
            "token_count": len(example.token_ids),
            "row_start": self.next_row,
            "row_count": rows,
            "status": layout.STATUSES.index(example.status),
            "source_index": example.source_index,
            "task": self.tasks.setdefault(example.task, len(self.tasks)),
        }
        for name, value in values.items():
            self.columns[name].append(value)
        # Examples with rows are counted by the shard that holds them.
        if rows == 0:
            self.statuses[example.status] += 1
        self.num_tokens += len(example.token_ids)
        self.next_row += rows
        self.num_rows += rows

    @property
    def num_shards(self) -> int:
        return -(-self.next_row // self.shard_rows)


def plan_store(
    path: str | Path,
    identity: Mapping[str, Any],
    examples: Iterable[TokenizedExample],
    *,
    shard_rows: int,
    vocab: Sequence[bytes],
) -> StoreSpec:
    """Write the token and example arrays and publish the empty store; `store.json` comes last.

    Args:
        path: where; a new or empty directory, or a store of the same identity.
        identity: what the numbers will depend on (see StoreSpec).
        examples: tokenized examples in corpus order, read once.
        shard_rows: rows of a shard.
        vocab: bytes of each token, index = id.

    Returns:
        The spec of the store at `path`.

    Raises:
        IdentityError: a store of another identity is there, also when it appeared meanwhile.
        UsageError: no example has a row, or a response is longer than a shard.
    """
    root = Path(path)
    chunk_rows = layout.chunk_rows_for(shard_rows)
    existed = root.exists()
    found = find_store(root)
    if found is None:
        staged = root / commits.STAGING / f"plan.{uuid.uuid4().hex}"
        try:
            _decide_plan(root, staged, identity, examples, (shard_rows, chunk_rows), vocab)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
            _remove_empty([root / commits.STAGING, root / "commits", *([] if existed else [root])])
        found = find_store(root)
        assert found is not None
    check_identity(found, identity, str(path))
    return found


def _decide_plan(
    root: Path,
    staged: Path,
    identity: Mapping[str, Any],
    examples: Iterable[TokenizedExample],
    shard_and_chunk: tuple[int, int],
    vocab: Sequence[bytes],
) -> None:
    """Stage every file of the plan under `staged`, then create its record exclusively."""
    shard_rows, chunk_rows = shard_and_chunk
    geometry = _Geometry(shard_rows)
    token_ids, is_response = (_Axis(array, staged) for array in layout.TOKEN_LAYOUTS)
    for example in examples:
        geometry.place(example)
        token_ids.append(example.token_ids)
        is_response.append(example.is_response)
    if geometry.num_rows == 0:
        counts = ", ".join(f"{n} {status}" for status, n in geometry.statuses.items()) or "none"
        raise UsageError(f"no example has a response to predict (examples: {counts}). See --data.")
    spec = StoreSpec(
        identity=json.loads(json.dumps(identity)),
        num_examples=len(geometry.columns["status"]),
        num_tokens=geometry.num_tokens,
        num_rows=geometry.num_rows,
        num_shards=geometry.num_shards,
        shard_rows=shard_rows,
        chunk_rows=chunk_rows,
        tasks=tuple(geometry.tasks),
    )
    contents = _plan_contents(spec, geometry, vocab)
    records = [_stage(staged, name, data) for name, data in contents.items()]
    records += token_ids.close() + is_response.close()
    facts = {"num_rows": 0, "statuses": dict(geometry.statuses)}
    record = commits.CommitRecord(commits.PLAN, tuple(records), facts)
    target = root / commits.STAGING / record.digest
    if not target.exists():
        # The same digest means the same bytes, so a racing twin's folder serves as well as ours.
        staged.rename(target)
    commits.decide(root, record)


def _plan_contents(
    spec: StoreSpec, geometry: _Geometry, vocab: Sequence[bytes]
) -> dict[str, bytes]:
    contents = {"data.zarr/zarr.json": layout.GROUP_METADATA}
    for array in layout.EXAMPLE_LAYOUTS:
        values = np.asarray(geometry.columns[array.name], dtype=array.dtype)
        contents.update(encode_whole(array, values))
    joined = np.frombuffer(b"".join(vocab), dtype=np.uint8)
    offsets = np.concatenate([[0], np.cumsum([len(token) for token in vocab])]).astype(np.int64)
    contents.update(encode_whole(layout.VOCAB_LAYOUTS[0], joined))
    contents.update(encode_whole(layout.VOCAB_LAYOUTS[1], offsets))
    rows = layout.row_layouts(spec.encoding, spec.top_k, spec.chunk_rows, spec.shard_rows)
    contents.update(layout.row_metadata(rows, spec.num_shards * spec.shard_rows))
    contents[STORE_JSON] = spec.to_json()
    return contents


def _stage(staged: Path, name: str, data: bytes) -> commits.FileRecord:
    files.write_synced(staged / name, data)
    return commits.FileRecord.of(name, data)


def _remove_empty(directories: Iterable[Path]) -> None:
    """Take back the empty folders of a plan that failed, so that a mistake leaves no trace."""
    for directory in directories:
        if directory.is_dir() and not any(directory.iterdir()):
            directory.rmdir()
