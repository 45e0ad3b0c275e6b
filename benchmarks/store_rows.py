"""Helpers of the store benchmarks: rows of real stores, and new stores that hold them.

Legend: E examples, T tokens, N rows, k cells per row, V vocabulary.
"""

import csv
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hardware import hardware

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from helpers.compact_stores import OldWriter, encoded, fit_orders

from caskd.store.corpus import TokenizedExample, vocab_digest
from caskd.store.read import TeacherStore
from caskd.store.write import plan_store

__all__ = [
    "RESULTS",
    "StoredRows",
    "bare_identity",
    "encoded",
    "fit_orders",
    "read_rows",
    "setting",
    "write_store",
    "write_table",
]
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class StoredRows:
    """The examples of some stores in order, with every row field."""

    examples: list[TokenizedExample]
    row_counts: np.ndarray  # [E]
    fields: dict[str, np.ndarray]  # [N] and [N, k]
    vocab: list[bytes]
    identity: dict[str, Any]

    @property
    def num_rows(self) -> int:
        """Number of rows N."""
        return int(self.row_counts.sum())

    @property
    def kinds(self) -> np.ndarray:
        """Task [N] of each row."""
        return np.repeat([example.task for example in self.examples], self.row_counts)


def read_rows(stores: Sequence[str]) -> StoredRows:
    """Read every example with rows; the stores must share a vocabulary, kind and k."""
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
        parts.append({name: batch.column(name) for name in store.row_fields})
    fields = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return StoredRows(
        examples, np.concatenate(counts), fields, store.vocab, dict(store.spec.identity)
    )


def write_store(
    path: Path, rows: StoredRows, encoding: str, *, shard_rows: int, repeats: int = 1
) -> TeacherStore:
    """Write the rows `repeats` times to a sealed store, as a capture does."""
    examples = rows.examples * repeats
    starts = np.cumsum(rows.row_counts) - rows.row_counts
    identity = {**rows.identity, "encoding": encoding}
    plan_store(path, identity, examples, shard_rows=shard_rows, vocab=rows.vocab)
    writer = OldWriter(path)
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
    for name in {"topk_logits", "head_logits"} & {*shard}:
        shard[name][shard["num_kept"] == 0] = -np.inf
    return shard


def bare_identity(
    kept: dict[str, Any], vocab: list[bytes], num_records: int, encoding: str
) -> dict[str, Any]:
    """Identity of a store of made-up text, with what its rows keep of the teacher."""
    return {
        "teacher": {"name": "teacher", "revision": None, "weights_digest": "00", "adapter": None},
        "vocabulary": {
            "size": len(vocab), "digest": vocab_digest(vocab), "tokenizer_digest": "00",
        },
        "text": {
            "kind": "text", "eos": False, "max_length": 4096, "on_long": "error",
            "template_digest": None,
        },
        "corpus": {"digest": "00", "num_records": num_records},
        "capture": {
            **kept, "load_dtype": "float32", "logits_dtype": "float32", "attention": "sdpa",
            "quantization": None, "temperature": 1.0,
        },
        "encoding": encoding,
    }  # fmt: skip


def setting(notes: str) -> dict[str, Any]:
    """Columns of every table of results."""
    return {
        "hardware": hardware(),
        "cores": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "notes": notes,
    }


def write_table(
    name: str, table: list[dict[str, Any]], columns: dict[str, Any], folder: Path = RESULTS
) -> None:
    """Write NAME.csv in a folder; a figure that a row does not have is left empty."""
    folder.mkdir(parents=True, exist_ok=True)
    fields = list(dict.fromkeys([*(field for row in table for field in row), *columns]))
    with (folder / f"{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=fields)
        writer.writeheader()
        writer.writerows(row | columns for row in table)
    print(f"wrote {folder / name}.csv")
