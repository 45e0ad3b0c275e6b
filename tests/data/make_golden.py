"""Write the golden stores of format versions 1 and 2, which every later version must read.

    PYTHONPATH=tests python tests/data/make_golden.py [NAME ...]

Run it only while the format has not been released: afterwards its files never change. The compact
store holds the examples of the exact one many times over, since only a store of 2^15 rows or more
has several orders of ids. The sampled store holds draws for the examples of the exact one, the head
store its likeliest ids and draws of the others. The
fitted stores have rows of unequal length, in two shards with four lists of ids each; that of the
encoding `fitted` was written by a version that still wrote it. Stores of draws in the fitted
encoding have two shards with two or four lists each. Those of version 2 from a server or an import
hold the same teacher as such a source would give it.
"""

import hashlib
import json
import shutil
import sys
from functools import partial
from pathlib import Path

import numpy as np
from helpers import format2_stores, head_stores, sampled_stores, stores
from helpers.compact_stores import OldWriter

from caskd.store.read import TeacherStore
from caskd.store.write import ShardWork, plan_store

HERE = Path(__file__).parent
NUM_EXAMPLES, TOP_K = 4, 2
REPEATS = {"exact": 1, "compact": 1264}
SHARD_ROWS = {"exact": 16, "compact": 1 << 15}


def rows_of(work: ShardWork, shard_rows: int) -> dict[str, np.ndarray]:
    """Every row of a shard; example i is a repetition of example i % NUM_EXAMPLES."""
    rows: dict[str, np.ndarray] = {}
    for example in work.examples:
        labels = example.token_ids[np.flatnonzero(example.is_response)]
        logits = stores.logits_of(example.index % NUM_EXAMPLES, len(labels))
        for name, values in stores.row_fields(logits, labels, TOP_K).items():
            target = rows.setdefault(name, np.zeros((shard_rows, *values.shape[1:]), values.dtype))
            target[example.row_start : example.row_start + len(labels)] = values
    rows["topk_logits"][rows["num_kept"] == 0] = -np.inf
    return rows


def write(encoding: str) -> TeacherStore:
    """One golden store, in place of what is there."""
    path, shard_rows = HERE / f"golden-v1-{encoding}", SHARD_ROWS[encoding]
    shutil.rmtree(path, ignore_errors=True)
    examples = stores.examples(NUM_EXAMPLES) * REPEATS[encoding]
    identity = stores.identity(TOP_K, encoding)
    plan_store(path, identity, examples, shard_rows=shard_rows, vocab=stores.VOCAB)
    writer = OldWriter(path)
    pilot = writer.pilot()
    if pilot is not None:
        writer.commit_pilot(rows_of(pilot, pilot.num_rows))
    for shard in writer.missing_shards():
        work = writer.shard(shard)
        writer.commit(work, rows_of(work, shard_rows))
    writer.seal()
    return TeacherStore.open(path)


def write_sampled() -> TeacherStore:
    """The golden store of draws, in place of what is there."""
    path = HERE / "golden-v1-sampled"
    shutil.rmtree(path, ignore_errors=True)
    return sampled_stores.make_store(
        path, num=NUM_EXAMPLES, shard_rows=SHARD_ROWS["exact"], encoding="compact"
    )


def write_head() -> TeacherStore:
    """The golden store of draws with a head, in place of what is there."""
    path = HERE / "golden-v2-head"
    shutil.rmtree(path, ignore_errors=True)
    return head_stores.make_store(
        path, num=NUM_EXAMPLES, shard_rows=SHARD_ROWS["exact"], encoding="compact"
    )


def write_fitted() -> TeacherStore:
    """The golden store of the fitted encoding, in place of what is there."""
    path = HERE / "golden-v2-fitted2"
    shutil.rmtree(path, ignore_errors=True)
    return stores.make_store(
        path, num=250, shard_rows=1024, top_k=8, encoding="fitted2", ragged=True
    )


def write_fitted_draws(with_head: bool) -> TeacherStore:
    """A golden store of draws in the fitted encoding, in place of what is there."""
    path = HERE / ("golden-v2-fitted2-head" if with_head else "golden-v2-fitted2-draws")
    shutil.rmtree(path, ignore_errors=True)
    if with_head:
        return head_stores.make_store(path, num=250, shard_rows=1024, encoding="fitted2")
    return sampled_stores.make_store(path, num=400, shard_rows=2048, encoding="fitted2")


def known_values(store: TeacherStore) -> dict[str, object]:
    """What the exact store holds: digests of all it gives, and its first example in full."""
    batch, first = store.read(range(len(store))), store.read([0])
    names = ("token_ids", "is_response", "logit_positions", "labels", *store.row_fields)
    return {
        "sha256": {
            name: hashlib.sha256(np.ascontiguousarray(getattr(batch, name)).tobytes()).hexdigest()
            for name in names
        },
        "first_example": {name: getattr(first, name).tolist() for name in names},
    }


def write_format2(kind: str) -> TeacherStore:
    """Write a store of version 2 as a server or an import would fill it."""
    path = HERE / f"golden-v2-{kind}"
    shutil.rmtree(path, ignore_errors=True)
    return format2_stores.make_store(path, kind, num=NUM_EXAMPLES, shard_rows=16)


if __name__ == "__main__":
    every = {
        "golden-v1": lambda: write("exact"),
        "golden-v1-sampled": write_sampled,
        "golden-v1-compact": lambda: write("compact"),
        "golden-v2-fitted2": write_fitted,
        "golden-v2-head": write_head,
        "golden-v2-fitted2-draws": partial(write_fitted_draws, with_head=False),
        "golden-v2-fitted2-head": partial(write_fitted_draws, with_head=True),
        **{f"golden-v2-{kind}": partial(write_format2, kind) for kind in format2_stores.KINDS},
    }
    for name in sys.argv[1:] or every:
        store = every[name]()
        if name != "golden-v1-compact":  # its values are those of golden-v1
            known = json.dumps(known_values(store), indent=1) + "\n"
            (HERE / f"{name}.json").write_text(known, encoding="utf-8")
        size = sum(file.stat().st_size for file in store.root.rglob("*") if file.is_file())
        print(f"{store.root.name}: {store.spec.num_rows:,} rows, {size:,} bytes")
