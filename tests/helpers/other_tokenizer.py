"""Tiny teachers and students with different tokenizers."""

from pathlib import Path
from typing import Any

import numpy as np

from caskd.precompute import PrecomputeConfig, precompute
from caskd.store import TeacherStore
from caskd.train import TrainConfig, train
from caskd.train.data import AlignedExample
from helpers.chat_tokenizers import TEMPLATES, TOKENIZERS
from helpers.records import write_jsonl
from helpers.tiny import tiny_model


def save(
    folder: Path,
    name: str,
    template: str | None = None,
    *,
    normalizer: Any = None,
    positions: int = 256,
) -> Path:
    """Write a tiny model with one of `TOKENIZERS`."""
    tokenizer = TOKENIZERS[name]()
    tokenizer.chat_template = None if template is None else TEMPLATES[template]
    if normalizer is not None:
        tokenizer.backend_tokenizer.normalizer = normalizer
    model = tiny_model(tokenizer)
    model.config.max_position_embeddings = positions
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def captured(
    root: Path, records: list[dict[str, Any]], teacher: Path, **changes: Any
) -> TeacherStore:
    """ROOT/store, captured from the records."""
    options: dict[str, Any] = {"top_k": 4, "shard_rows": 128, **changes}
    data = write_jsonl(root / "data.jsonl", records)
    store = str(root / "store")
    precompute(PrecomputeConfig(teacher=str(teacher), data=(str(data),), store=store, **options))
    return TeacherStore.open(store)


def run(root: Path, out: str, **changes: Any) -> Path:
    """Train ROOT/student on ROOT/store."""
    options: dict[str, Any] = {
        "store": str(root / "store"), "student": str(root / "student"), "out": root / out,
        "steps": 4, "global_batch_size": 4, "micro_batch_size": 2, "lr": 1e-2,
        "objective": "cat-alm", "save_every": 2,
    }  # fmt: skip
    return train(TrainConfig(**{**options, **changes}))


def own_labels(example: AlignedExample) -> np.ndarray:
    """[N] labels of an example's rows."""
    positions = np.flatnonzero(example.is_response)
    return example.token_ids[positions[positions > 0]]
