"""The positions of examples on the token and row axes; streaming of the token axis to disk."""

from array import array
from collections import Counter
from pathlib import Path

import numpy as np

from caskd.store.commits import FileRecord, publish
from caskd.store.corpus import TokenizedExample, num_rows
from caskd.store.errors import UsageError
from caskd.store.format import STATUSES, Array, encode_shards, layout, untrusted_json

TEXT_COUNTS = ("own_borders", "rendered_bos", "context_turns")
"""What the plan of a store of format 2 counts of its text."""


class Axis:
    """Streams one token array into staged shard files, with one shard in memory."""

    def __init__(self, array: layout.ArrayLayout, staged: Path) -> None:
        self.array, self.staged = array, staged
        self.pending: list[Array] = []
        self.num_pending = self.num_shards = self.length = 0
        self.records: list[FileRecord] = []

    def append(self, values: Array) -> None:
        """Append tokens; stage every shard that is full."""
        self.pending.append(values)
        self.num_pending += len(values)
        self.length += len(values)
        if self.num_pending >= self.array.shard:
            self._flush(self.num_pending - self.num_pending % self.array.shard)

    def _flush(self, amount: int) -> None:
        values = np.concatenate(self.pending) if self.pending else np.zeros(0, self.array.dtype)
        for data in encode_shards(self.array, values[:amount]):
            self.records.append(publish.stage(self.staged, self.array.key(self.num_shards), data))
            self.num_shards += 1
        self.pending, self.num_pending = [values[amount:]], len(values) - amount

    def close(self) -> list[FileRecord]:
        """Stage the rest and the metadata; returns all files of the array."""
        if self.num_pending:
            self._flush(self.num_pending)
        metadata = self.array.metadata_bytes(self.length)
        self.records.append(publish.stage(self.staged, self.array.metadata_key, metadata))
        return self.records


class Geometry:
    """Lays examples out on the axes in corpus order, next-fit; 35 bytes an example."""

    def __init__(self, shard_rows: int) -> None:
        self.shard_rows = shard_rows
        self.columns = {a.name: array(np.dtype(a.dtype).char) for a in layout.EXAMPLE_LAYOUTS}
        self.tasks: dict[str, int] = {}
        self.statuses: Counter[str] = Counter()
        self.text_counts = Counter(dict.fromkeys(TEXT_COUNTS, 0))
        self.num_tokens = self.next_row = self.num_rows = 0

    def append(self, example: TokenizedExample) -> None:
        """Lay out the next example on both axes.

        Raises:
            UsageError: its response has more rows than a shard, or there are too many tasks.
        """
        rows = num_rows(example.is_response)
        if rows > self.shard_rows:
            raise UsageError(
                f"example {example.source_index}: its response has {rows:,} rows; expected at "
                f"most the {self.shard_rows:,} of a shard; raise --shard-rows, or set --max-length"
            )
        if self.next_row % self.shard_rows + rows > self.shard_rows:
            self.next_row += self.shard_rows - self.next_row % self.shard_rows
        task = self.tasks.setdefault(example.task, len(self.tasks))
        most = untrusted_json.MAX_TASKS
        if task >= most:
            raise UsageError(
                f"--task-column: record {example.source_index} has another task name beyond "
                f"{most:,}; expected at most {most:,}; pass a column of fewer names"
            )
        self.text_counts.update(
            own_borders=int(example.own_border),
            rendered_bos=int(example.rendered_bos),
            context_turns=example.num_context_turns,
        )
        values = {
            "token_start": self.num_tokens,
            "token_count": len(example.token_ids),
            "row_start": self.next_row,
            "row_count": rows,
            "status": STATUSES.index(example.status),
            "source_index": example.source_index,
            "task": task,
        }
        for name, value in values.items():
            self.columns[name].append(value)
        # The commit of a shard counts the statuses of the examples that have rows in it.
        if rows == 0:
            self.statuses[example.status] += 1
        self.num_tokens += len(example.token_ids)
        self.next_row += rows
        self.num_rows += rows

    @property
    def num_shards(self) -> int:
        """Shards of the row axis so far."""
        return -(-self.next_row // self.shard_rows)
