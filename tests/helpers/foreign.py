"""Captures in other programs' formats, written from a tiny teacher's log-probabilities."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from helpers.tiny import tiny_tokenizer

EXACT = {
    "d": 51, "k": 6, "exact_k": 6, "exact_dtype": "float32", "polynomial_terms": None,
    "term_dtype": "float32", "residual_bins": [], "delta_encoding": False,
    "error_diffusion": False, "normalize_t": False,
}  # fmt: skip
VOCAB_SIZE = len(tiny_tokenizer())


def examples(num: int = 12, seed: int = 0, *, shortest: int = 3) -> list[np.ndarray]:
    """Token ids of random texts, none of them padding, EOS at the end of each."""
    rng = np.random.default_rng(seed)
    return [
        np.append(rng.integers(4, VOCAB_SIZE, rng.integers(shortest, 14)), 2) for _ in range(num)
    ]


def log_probs(tokens: np.ndarray, seed: int = 7) -> np.ndarray:
    """Log-probabilities [T - 1, V] that favour the label: row r is about token r + 1."""
    rng = np.random.default_rng([seed, int(tokens.sum()), len(tokens)])
    logits = rng.normal(0, 2, (len(tokens) - 1, VOCAB_SIZE))
    logits[np.arange(len(logits)), tokens[1:]] += 4
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def top(logits: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids and float32 values [N, k] by descending value."""
    ids = np.argsort(-logits, axis=1, kind="stable")[:, :k]
    return ids, np.take_along_axis(logits, ids, 1).astype(np.float32)


def pack(ids: np.ndarray, bits: int) -> np.ndarray:
    """Bytes of ids [N, k], by the book: one string of digits a row."""
    rows = []
    for row in ids:
        digits = "".join(format(int(i), f"0{bits}b") for i in row)
        digits += "0" * (-len(digits) % 8)
        rows.append([int(digits[n : n + 8], 2) for n in range(0, len(digits), 8)])
    return np.array(rows, np.uint8).reshape(len(ids), -1)


def distillkit_record(tokens: np.ndarray, *, k: int = 6, pad: int | None = 0) -> dict[str, Any]:
    """A record of DistillKit's sampler: exact float32 values, and a pad token at the end."""
    if pad is not None:
        tokens = np.append(tokens, pad)
    ids, values = top(log_probs(tokens), k)
    return {
        "input_ids": tokens.tolist(),
        "compressed_logprobs": values.astype("<f4").view(np.uint8).reshape(len(ids), -1).tolist(),
        "bytepacked_indices": pack(ids, 6).tolist(),
    }


SCHEMA = pa.schema(
    [
        ("input_ids", pa.list_(pa.uint64())),
        ("compressed_logprobs", pa.list_(pa.list_(pa.uint8()))),
        ("bytepacked_indices", pa.list_(pa.list_(pa.uint8()))),
    ]
)


def write_distillkit(
    folder: Path, records: list[dict[str, Any]], settings: dict[str, Any] = EXACT, *, files: int = 2
) -> Path:
    """A folder as DistillKit's sampler writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(files):
        table = pa.Table.from_pylist(records[number::files], SCHEMA)
        pq.write_table(table, folder / f"data_{number}.parquet")
    (folder / "compression_config.yaml").write_text(yaml.safe_dump(settings))
    return folder
