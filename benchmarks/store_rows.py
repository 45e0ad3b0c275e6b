"""What the store benchmarks share: rows of real stores, and new stores that hold them.

Legend: E examples, T tokens, N rows, k cells per row, V vocabulary.
"""

import csv
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hardware import hardware

from caskd.store.corpus import TokenizedExample
from caskd.store.format import TOPK
from caskd.store.read import TeacherStore
from caskd.store.write import StoreWriter, plan_store

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class StoredRows:
    """Examples of some stores, in order, with every row field."""

    examples: list[TokenizedExample]
    row_counts: np.ndarray  # [E]
    fields: dict[str, np.ndarray]  # [N] and [N, k]
    vocab: list[bytes]
    identity: dict[str, Any]

    @property
    def num_rows(self) -> int:
        """N."""
        return int(self.row_counts.sum())

    @property
    def kinds(self) -> np.ndarray:
        """Task [N] of each row."""
        return np.repeat([example.task for example in self.examples], self.row_counts)


def read_rows(stores: Sequence[str]) -> StoredRows:
    """Every example with rows of some stores; they must have one vocabulary and one k."""
    examples: list[TokenizedExample] = []
    counts: list[np.ndarray] = []
    parts: list[dict[str, np.ndarray]] = []
    for path in stores:
        store = TeacherStore.open(path)
        chosen = np.flatnonzero(store.row_counts())
        batch = store.read(chosen)
        for i, example in enumerate(chosen):
            span = slice(batch.token_offsets[i], batch.token_offsets[i + 1])
            task = store.spec.tasks[store.index.task[example]]
            tokens, mask = batch.token_ids[span], batch.is_response[span]
            examples.append(TokenizedExample(tokens, mask, "ok", len(examples), task))
        counts.append(store.row_counts()[chosen])
        parts.append({name: batch.column(name) for name in TOPK.fields})
    fields = {name: np.concatenate([part[name] for part in parts]) for name in TOPK.fields}
    return StoredRows(
        examples, np.concatenate(counts), fields, store.vocab, dict(store.spec.identity)
    )


def write_store(
    path: Path, rows: StoredRows, encoding: str, *, shard_rows: int, repeats: int = 1
) -> TeacherStore:
    """A sealed store of the rows, `repeats` times over, made as a capture would make it."""
    examples = rows.examples * repeats
    starts = np.cumsum(rows.row_counts) - rows.row_counts
    identity = {**rows.identity, "encoding": encoding}
    plan_store(path, identity, examples, shard_rows=shard_rows, vocab=rows.vocab)
    writer = StoreWriter(path)
    pilot = writer.pilot()
    if pilot is not None:
        writer.commit_pilot(_shard(rows, pilot, starts, pilot.num_rows))
    for shard in writer.missing_shards():
        work = writer.shard(shard)
        writer.commit(work, _shard(rows, work, starts, shard_rows))
    writer.seal()
    return TeacherStore.open(path)


def _shard(rows: StoredRows, work: Any, starts: np.ndarray, length: int) -> dict[str, np.ndarray]:
    shard = {
        name: np.zeros((length, *values.shape[1:]), values.dtype)
        for name, values in rows.fields.items()
    }
    for example in work.examples:
        source = starts[example.index % len(starts)]
        for name, values in rows.fields.items():
            stop = example.row_start + example.row_count
            shard[name][example.row_start : stop] = values[source : source + example.row_count]
    shard["topk_logits"][shard["num_kept"] == 0] = -np.inf
    return shard


def setting(notes: str) -> dict[str, Any]:
    """Columns that every table of results has."""
    return {
        "hardware": hardware(),
        "cores": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "notes": notes,
    }


def write_table(name: str, table: list[dict[str, Any]], columns: dict[str, Any]) -> None:
    """Write benchmarks/results/NAME.csv; a figure that a row does not have is left empty."""
    RESULTS.mkdir(exist_ok=True)
    fields = list(dict.fromkeys([*(field for row in table for field in row), *columns]))
    with (RESULTS / f"{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=fields)
        writer.writeheader()
        writer.writerows(row | columns for row in table)
    print(f"wrote {RESULTS / name}.csv")
