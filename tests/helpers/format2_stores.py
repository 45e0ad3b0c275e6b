"""Small stores of format 2: the toy teacher of stores.py, as a server or an import gives it."""

from pathlib import Path
from typing import Any

import numpy as np

from caskd.store.read import TeacherStore
from caskd.store.write import ShardWork, plan_store
from helpers import sampled_stores, stores
from helpers.compact_stores import OldWriter

SERVED = {
    "engine": "server", "engine_version": "vllm 0.32", "values": "log-probs", "rank": "capped",
    "tail": "complement",
}  # fmt: skip
IMPORTED = {"label": "within_topk", "rank": "capped", "tail": "unknown", "imported_from": "toy"}
DRAWS = {"label": "within_topk", "argmax": "unknown", "imported_from": "toy draws"}
KINDS = {"served": SERVED, "imported": IMPORTED, "draws": DRAWS}

Rows = dict[str, np.ndarray]


def known_rows(rows: Rows, labels: np.ndarray, capture: dict[str, str]) -> Rows:
    """The fields that a capture of this kind gives, from exact ones."""
    rows, ids = dict(rows), rows.get("topk_ids", rows.get("sampled_ids"))
    assert ids is not None
    inside = (ids == labels[:, None]) & (np.arange(ids.shape[1]) < rows["num_kept"][:, None])
    if capture.get("values") == "log-probs":
        total = rows["logsumexp"]
        rows["topk_logits"] = rows["topk_logits"] - total[:, None]
        rows["label_logit"], rows["logsumexp"] = rows["label_logit"] - total, 0 * total
    if capture.get("tail") == "complement":
        rows["tail_mass"] = 1 - np.exp(rows["topk_logits"]).sum(axis=1)
    if capture.get("tail") == "unknown":
        rows["tail_mass"] = 0 * rows["tail_mass"]
    if capture.get("rank") == "capped":
        rows["label_rank"] = np.minimum(rows["label_rank"], ids.shape[1]).astype(np.uint32)
    if capture.get("argmax") == "unknown":
        rows["argmax"], rows["label_rank"] = 0 * rows["argmax"], 0 * rows["label_rank"]
    if capture.get("label") == "within_topk":
        rows["label_logit"] = np.where(inside.any(axis=1), rows["label_logit"], -np.inf)
    return {name: values.astype(rows_dtype(name)) for name, values in rows.items()}


def rows_dtype(name: str) -> type:
    """Of a row field in a store."""
    floats = ("topk_logits", "logsumexp", "label_logit", "tail_mass")
    narrow = {"num_kept": np.uint16, "sampled_counts": np.uint16}
    return np.float32 if name in floats else narrow.get(name, np.uint32)


def rows_of(work: ShardWork, num_rows: int, kind: str, cells: int) -> Rows:
    """Every row of a shard, filler included."""
    rows: Rows = {}
    for example in work.examples:
        labels = example.token_ids[np.flatnonzero(example.is_response)]
        logits = stores.logits_of(example.index, len(labels))
        fields = (
            sampled_stores.row_fields(example.index, logits, labels, cells)
            if kind == "draws"
            else stores.row_fields(logits, labels, cells)
        )
        for name, values in known_rows(fields, labels, KINDS[kind]).items():
            target = rows.setdefault(name, np.zeros((num_rows, *values.shape[1:]), values.dtype))
            target[example.row_start : example.row_start + len(labels)] = values
    if "topk_logits" in rows:
        rows["topk_logits"][rows["num_kept"] == 0] = -np.inf
    return rows


def make_store(
    path: Path, kind: str, *, num: int = 20, shard_rows: int = 32, encoding: str = "exact"
) -> TeacherStore:
    """Plan, fill and seal a store of one of `KINDS`."""
    cells = sampled_stores.NUM_SAMPLES if kind == "draws" else 4
    plain: dict[str, Any] = (
        sampled_stores.identity(cells, encoding)
        if kind == "draws"
        else stores.identity(cells, encoding)
    )
    identity = {**plain, "capture": {**plain["capture"], **KINDS[kind]}}
    plan_store(path, identity, stores.examples(num), shard_rows=shard_rows, vocab=stores.VOCAB)
    writer = OldWriter(path)
    pilot = writer.pilot()
    if pilot is not None:
        assert writer.commit_pilot(rows_of(pilot, pilot.num_rows, kind, cells))
    for shard in writer.missing_shards():
        work = writer.shard(shard)
        assert writer.commit(work, rows_of(work, shard_rows, kind, cells))
    writer.seal()
    return TeacherStore.open(path)
