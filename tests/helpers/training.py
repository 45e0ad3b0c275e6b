"""A tiny captured store and its models, for tests that train."""

import json
import shutil
from pathlib import Path
from typing import Any

from caskd.precompute import PrecomputeConfig, precompute
from caskd.train import TrainConfig
from caskd.train.checkpoint import checkpoint_path
from helpers.tiny import ragged_records, save_tiny, write_jsonl

TOP_K = 8


def capture(root: Path, *, num: int = 40, teacher: str = "teacher", top_k: int = TOP_K) -> Path:
    """ROOT/store, captured from ROOT/teacher, with ROOT/student beside; unequal lengths."""
    save_tiny(root / teacher, seed=0)
    save_tiny(root / "student", seed=1)
    write_jsonl(root / "data.jsonl", ragged_records(num))
    precompute(
        PrecomputeConfig(
            teacher=str(root / teacher),
            data=(str(root / "data.jsonl"),),
            store=str(root / "store"),
            top_k=top_k,
            shard_rows=64,
            dtype="float32",
            device="cpu",
        )
    )
    return root / "store"


def copy_killed(whole: Path, run: Path, step: int) -> Path:
    """A copy of a finished run, as if it had been killed before its checkpoint of `step`."""
    shutil.copytree(whole, run)
    shutil.rmtree(checkpoint_path(run, step))
    return run


def set_dropout(student: Path, probability: float) -> None:
    """Give a student attention dropout, so that its training draws random numbers."""
    path = student / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "attention_dropout": probability}))


def config_for(root: Path, out: str = "run", **changes: Any) -> TrainConfig:
    """Options of a short run on what `capture` made."""
    options: dict[str, Any] = {
        "store": str(root / "store"),
        "student": str(root / "student"),
        "out": root / out,
        "steps": 6,
        "global_batch_size": 8,
        "micro_batch_size": 4,
        "lr": 1e-3,
        "objective": "dist",
        "dtype": "float32",
    }
    return TrainConfig(**{**options, **changes})


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without what a clock says."""
    clock = ("seconds", "data_seconds", "tokens_per_second")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in clock} for line in lines]
