"""Small sampled stores for tests: the toy teacher of stores.py, and draws by the book."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from caskd.store.format import DEFAULT_ENCODING
from caskd.store.read import TeacherStore
from caskd.store.write import ShardWork, plan_store
from helpers import stores
from helpers.compact_stores import OldWriter

NUM_SAMPLES = 20


def identity(num_samples: int = NUM_SAMPLES, encoding: str = DEFAULT_ENCODING) -> dict[str, Any]:
    """A complete identity of a sampled store over stores.VOCAB."""
    made = stores.identity(encoding=encoding)
    rest = {k: v for k, v in made["capture"].items() if k not in ("kind", "top_k", "min_mass")}
    drawn = {"kind": "sampled", "num_samples": num_samples, "sample_seed": 3}
    return {**made, "capture": {**drawn, **rest}}


def row_fields(
    example: int, logits: np.ndarray, labels: np.ndarray, num_samples: int
) -> dict[str, np.ndarray]:
    """The row fields by the book: numpy's own draws, a Counter, sorted by (-count, id)."""
    columns = stores.row_fields(logits, labels, 1)
    p = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    rng = np.random.default_rng([3, example])
    ids = np.zeros((len(labels), num_samples), np.uint32)
    counts = np.zeros((len(labels), num_samples), np.uint16)
    kept = np.zeros(len(labels), np.uint16)
    for n, row in enumerate(p / p.sum(1, keepdims=True)):
        drawn = Counter(rng.choice(len(row), num_samples, p=row).tolist())
        cells = sorted(drawn.items(), key=lambda cell: (-cell[1], cell[0]))
        kept[n] = len(cells)
        ids[n, : len(cells)], counts[n, : len(cells)] = zip(*cells, strict=True)
    names = ("logsumexp", "label_logit", "argmax", "label_rank")
    drawn_fields = {"sampled_ids": ids, "sampled_counts": counts, "num_kept": kept}
    return {**drawn_fields, **{name: columns[name] for name in names}}


def rows_of(
    work: ShardWork, num_rows: int, num_samples: int, examples: int = 1 << 60
) -> dict[str, np.ndarray]:
    """Every row of a shard, filler included; example i repeats example i % examples."""
    rows: dict[str, np.ndarray] = {}
    for example in work.examples:
        number = example.index % examples
        labels = example.token_ids[np.flatnonzero(example.is_response)]
        logits = stores.logits_of(number, len(labels))
        for name, values in row_fields(number, logits, labels, num_samples).items():
            target = rows.setdefault(name, np.zeros((num_rows, *values.shape[1:]), values.dtype))
            target[example.row_start : example.row_start + len(labels)] = values
    return rows


def make_store(
    path: Path,
    *,
    num: int = 20,
    shard_rows: int = 32,
    num_samples: int = NUM_SAMPLES,
    encoding: str = DEFAULT_ENCODING,
) -> TeacherStore:
    """Plan, fill and seal a store."""
    made = identity(num_samples, encoding)
    plan_store(path, made, stores.examples(num), shard_rows=shard_rows, vocab=stores.VOCAB)
    writer = OldWriter(path)
    pilot = writer.pilot()
    if pilot is not None:
        assert writer.commit_pilot(rows_of(pilot, pilot.num_rows, num_samples))
    for shard in writer.missing_shards():
        work = writer.shard(shard)
        assert writer.commit(work, rows_of(work, shard_rows, num_samples))
    writer.seal()
    return TeacherStore.open(path)
