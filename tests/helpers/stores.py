"""Small stores for tests, filled from random logits by a naive reference in numpy."""

from pathlib import Path
from typing import Any

import numpy as np

from caskd.store.corpus import TokenizedExample, vocab_digest
from caskd.store.format import DEFAULT_ENCODING
from caskd.store.read import TeacherStore
from caskd.store.write import ShardWork, plan_store
from helpers.compact_stores import OldWriter

VOCAB = [b"<pad>", b"<s>", b"</s>", b"\x1b[31m", *(bytes([c]) for c in range(97, 123))]


def identity(top_k: int = 4, encoding: str = DEFAULT_ENCODING, **capture: Any) -> dict[str, Any]:
    """A complete identity for a store over VOCAB."""
    return {
        "teacher": {"name": "toy", "revision": None, "weights_digest": "00", "adapter": None},
        "vocabulary": {
            "size": len(VOCAB), "digest": vocab_digest(VOCAB), "tokenizer_digest": "11",
        },
        "text": {
            "kind": "prompt", "eos": True, "max_length": 256, "on_long": "error",
            "template_digest": None,
        },
        "corpus": {"digest": "22", "num_records": 3},
        "capture": {
            "kind": "topk", "top_k": top_k, "min_mass": 1.0, "load_dtype": "float32",
            "logits_dtype": "float32", "attention": "eager", "quantization": None,
            "temperature": 1.0, **capture,
        },
        "encoding": encoding,
    }  # fmt: skip


def examples(num: int = 20, seed: int = 0, longest: int = 12) -> list[TokenizedExample]:
    """Random examples; every seventh is empty."""
    rng = np.random.default_rng(seed)
    made = []
    for i in range(num):
        if i % 7 == 6:
            nothing = np.zeros(0, np.uint32)
            made.append(TokenizedExample(nothing, nothing.astype(np.uint8), "empty", i, "b"))
            continue
        prompt, response = rng.integers(1, longest, 2)
        mask = np.repeat([0, 1], [prompt, response]).astype(np.uint8)
        tokens = rng.integers(0, len(VOCAB), prompt + response).astype(np.uint32)
        made.append(TokenizedExample(tokens, mask, "ok", i, "ab"[i % 2]))
    return made


def logits_of(example: int, num_rows: int) -> np.ndarray:
    """The toy teacher: logits [num_rows, V] that depend on the example and the row only."""
    rng = np.random.default_rng(1000 + example)
    return rng.normal(0, 3, (num_rows, len(VOCAB))).astype(np.float32)


def row_fields(logits: np.ndarray, labels: np.ndarray, top_k: int) -> dict[str, np.ndarray]:
    """The row fields by the book: sorts, sums in float64, nothing clever."""
    n = np.arange(len(labels))
    order = np.lexsort((np.broadcast_to(np.arange(logits.shape[1]), logits.shape), -logits))
    high = logits.max(1).astype(np.float64)
    weights = np.exp(logits - high[:, None])
    total = weights.sum(1)
    probabilities = weights / total[:, None]
    ids = order[:, :top_k]
    label_logit = logits[n, labels]
    above = (logits > label_logit[:, None]).sum(1)
    tied = ((logits == label_logit[:, None]) & (np.arange(logits.shape[1]) < labels[:, None])).sum(
        1
    )
    return {
        "topk_ids": ids.astype(np.uint32),
        "topk_logits": np.take_along_axis(logits, ids, 1),
        "num_kept": np.full(len(labels), top_k, np.uint16),
        "logsumexp": (high + np.log(total)).astype(np.float32),
        "label_logit": label_logit,
        "tail_mass": np.take_along_axis(probabilities, order[:, top_k:], 1)
        .sum(1)
        .astype(np.float32),
        "argmax": ids[:, 0].astype(np.uint32),
        "label_rank": (above + tied).astype(np.uint32),
    }


def shard_rows_of(work: ShardWork, shard_rows: int, top_k: int) -> dict[str, np.ndarray]:
    """Every row of a shard, filler included."""
    rows: dict[str, np.ndarray] = {}
    for example in work.examples:
        labels = example.token_ids[np.flatnonzero(example.is_response)]
        fields = row_fields(logits_of(example.index, len(labels)), labels, top_k)
        for name, values in fields.items():
            target = rows.setdefault(name, np.zeros((shard_rows, *values.shape[1:]), values.dtype))
            target[example.row_start : example.row_start + len(labels)] = values
    rows["topk_logits"][rows["num_kept"] == 0] = -np.inf
    return rows


def cut_rows(rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same rows with 1 to k of their cells, as `--min-mass` leaves them."""
    top_k = rows["topk_ids"].shape[1]
    kept = np.minimum(rows["num_kept"], 1 + np.arange(len(rows["num_kept"])) * 7 % top_k)
    padding = np.arange(top_k) >= kept[:, None]
    with np.errstate(invalid="ignore"):
        p = np.exp(rows["topk_logits"].astype(np.float64) - rows["logsumexp"][:, None])
    more = np.where(padding & (np.arange(top_k) < rows["num_kept"][:, None]), p, 0).sum(1)
    return {
        **rows,
        "topk_ids": np.where(padding, 0, rows["topk_ids"]).astype(np.uint32),
        "topk_logits": np.where(padding, -np.inf, rows["topk_logits"]).astype(np.float32),
        "num_kept": kept.astype(np.uint16),
        "tail_mass": (rows["tail_mass"] + more).astype(np.float32),
    }


def fill(path: Path, *, only: list[int] | None = None, ragged: bool = False) -> OldWriter:
    """Commit the missing shards of a planned store (or some of them)."""
    writer = OldWriter(path)
    pilot = writer.pilot()
    if pilot is not None:
        committed = writer.commit_pilot(shard_rows_of(pilot, pilot.num_rows, writer.spec.top_k))
        assert committed
    for shard in writer.missing_shards() if only is None else only:
        work = writer.shard(shard)
        rows = shard_rows_of(work, writer.spec.shard_rows, writer.spec.top_k)
        rows = cut_rows(rows) if ragged else rows
        committed = writer.commit(work, rows)  # outside the assert: this runs under python -O
        assert committed
    return writer


def make_store(
    path: Path,
    *,
    num: int = 20,
    seed: int = 0,
    shard_rows: int = 32,
    top_k: int = 4,
    encoding: str = DEFAULT_ENCODING,
    ragged: bool = False,
) -> TeacherStore:
    """Plan, fill and seal a store; `ragged` gives its rows unequal numbers of cells."""
    made = identity(top_k, encoding)
    plan_store(path, made, examples(num, seed), shard_rows=shard_rows, vocab=VOCAB)
    fill(path, ragged=ragged).seal()
    return TeacherStore.open(path)


def tree(path: Path) -> dict[str, bytes]:
    """Every file of a store but its environment, by name."""
    return {
        file.relative_to(path).as_posix(): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file() and "environment" not in file.parts
    }
