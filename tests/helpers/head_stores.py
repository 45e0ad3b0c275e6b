"""Small stores of draws with a head: the toy teacher of stores.py, head and draws by the book."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from caskd.store.format import DEFAULT_ENCODING
from caskd.store.read import TeacherStore
from caskd.store.write import ShardWork, plan_store
from helpers import stores
from helpers.compact_stores import OldWriter

HEAD, NUM_SAMPLES = 3, 20
CELLS = ("sampled_ids", "sampled_counts", "head_logits")


def identity(encoding: str = DEFAULT_ENCODING) -> dict[str, Any]:
    """A complete identity over stores.VOCAB."""
    made = stores.identity(encoding=encoding)
    rest = {k: v for k, v in made["capture"].items() if k not in ("kind", "top_k", "min_mass")}
    kept = {"kind": "head_sampled", "head": HEAD, "num_samples": NUM_SAMPLES, "sample_seed": 3}
    return {**made, "capture": {**kept, **rest}}


def row_fields(example: int, logits: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """The row fields by the book: a top-k, and numpy's own draws from all other ids."""
    top = stores.row_fields(logits, labels, HEAD)
    rng = np.random.default_rng([3, example])
    shape = (len(labels), HEAD + NUM_SAMPLES)
    ids, counts = np.zeros(shape, np.uint32), np.zeros(shape, np.uint16)
    head_logits = np.full(shape, -np.inf, np.float32)
    ids[:, :HEAD], head_logits[:, :HEAD] = top["topk_ids"], top["topk_logits"]
    kept = np.zeros(len(labels), np.uint16)
    for n, row in enumerate(np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))):
        row[top["topk_ids"][n]] = 0
        drawn = Counter(rng.choice(len(row), NUM_SAMPLES, p=row / row.sum()).tolist())
        cells = sorted(drawn.items(), key=lambda cell: (-cell[1], cell[0]))
        kept[n] = HEAD + len(cells)
        ids[n, HEAD : kept[n]], counts[n, HEAD : kept[n]] = zip(*cells, strict=True)
    names = ("logsumexp", "label_logit", "argmax", "label_rank")
    return {
        "sampled_ids": ids, "sampled_counts": counts, "head_logits": head_logits,
        "num_kept": kept, "num_head": np.full(len(labels), HEAD, np.uint16),
        "drawn_mass": top["tail_mass"], **{name: top[name] for name in names},
    }  # fmt: skip


def rows_of(work: ShardWork, num_rows: int) -> dict[str, np.ndarray]:
    """Every row of a shard, filler included."""
    rows: dict[str, np.ndarray] = {}
    for example in work.examples:
        labels = example.token_ids[np.flatnonzero(example.is_response)]
        fields = row_fields(example.index, stores.logits_of(example.index, len(labels)), labels)
        for name, values in fields.items():
            target = rows.setdefault(name, np.zeros((num_rows, *values.shape[1:]), values.dtype))
            target[example.row_start : example.row_start + len(labels)] = values
    rows["head_logits"][rows["num_kept"] == 0] = -np.inf
    return rows


def make_store(
    path: Path, *, num: int = 20, shard_rows: int = 32, encoding: str = DEFAULT_ENCODING
) -> TeacherStore:
    """Plan, fill and seal a store."""
    examples = stores.examples(num)
    plan_store(path, identity(encoding), examples, shard_rows=shard_rows, vocab=stores.VOCAB)
    writer = OldWriter(path)
    pilot = writer.pilot()
    if pilot is not None:
        assert writer.commit_pilot(rows_of(pilot, pilot.num_rows))
    for shard in writer.missing_shards():
        assert writer.commit(work := writer.shard(shard), rows_of(work, shard_rows))
    writer.seal()
    return TeacherStore.open(path)
