"""Rows of one shard of the fitted encoding of a top-k, and its decoder without a store."""

import numpy as np

from caskd.store.cells import IdLists
from caskd.store.format import ROW_ENCODINGS
from helpers import stores

V, K, SHARD_ROWS = 700, 24, 1024
FITTED = ROW_ENCODINGS["topk", "fitted2"]


def toy_rows(seed: int, scale: float = 3.0) -> dict[str, np.ndarray]:
    """One shard of rows with 1 to k cells; the last 40 are filler."""
    rng = np.random.default_rng(seed)
    groups = rng.standard_normal((4, V)) * 3
    noise = rng.standard_t(3, (SHARD_ROWS, V))
    logits = ((groups[rng.integers(0, 4, SHARD_ROWS)] + noise) * scale / 3).astype(np.float32)
    any_id = rng.integers(0, V, SHARD_ROWS)
    labels = np.where(rng.random(SHARD_ROWS) < 0.5, logits.argmax(1), any_id)
    rows = stores.cut_rows(stores.row_fields(logits, labels, K))
    for name, values in rows.items():
        values[-40:] = -np.inf if name == "topk_logits" else 0
    return rows


def decoded(stored: dict[str, np.ndarray], vocab: int = V) -> dict[str, np.ndarray]:
    """The row fields of one shard, chunk by chunk, with no help from a store."""
    table = np.empty(IdLists.table_size(stored["topk_id_lists"].shape, vocab), np.uint32)
    FITTED.decode("topk_id_table", stored, None, table)
    parts = []
    for start in range(0, SHARD_ROWS, 512):
        tables = {"topk_id_lists", "topk_id_common"}
        rows = slice(start, start + 512)
        part = {  # by rank, as chunks come from disk
            n: v if n in tables else np.asfortranarray(v[rows]) for n, v in stored.items()
        }
        part["topk_id_table"], part["topk_codes"] = table, np.empty((K, 512), np.uint16)
        FITTED.decode("topk_codes", part, None, part["topk_codes"])
        fields = {name: part[name] for name in ("num_kept", "argmax", "label_rank", "logsumexp")}
        for name, dtype in (("topk_ids", "u4"), ("topk_logits", "f4")):
            fields[name] = np.empty((512, K), dtype)
            FITTED.decode(name, part, None, fields[name])
        for name in ("label_logit", "tail_mass"):
            fields[name] = np.empty(512, "f4")
            FITTED.decode(name, part, None, fields[name])
        parts.append(fields)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
