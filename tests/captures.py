"""Small captures for tests: their configuration, and the bytes that a seal covers."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tiny import ragged_records, write_jsonl

from caskd.precompute import PrecomputeConfig

RECORDS = ragged_records(40, seed=3)
TOP_K = 8


def config_for(
    teacher: Path, folder: Path, records: Iterable[Mapping[str, Any]] = RECORDS, **changes: Any
) -> PrecomputeConfig:
    """A capture of `records` into `folder`/store, several shards of it."""
    data = write_jsonl(folder / "data.jsonl", records)
    base = {
        "teacher": str(teacher), "data": (str(data),), "store": str(folder / "store"),
        "top_k": TOP_K, "shard_rows": 128, "token_budget": 200, "device": "cpu",
        "encoding": "exact",
    }  # fmt: skip
    return PrecomputeConfig(**{**base, **changes})


def sealed_files(store: str) -> dict[str, bytes]:
    """Everything that the seal covers."""
    root = Path(store)
    files = [file for file in root.rglob("*") if file.is_file() and file.name != "README.md"]
    return {
        str(file.relative_to(root)): file.read_bytes()
        for file in files
        if "environment" not in file.parts
    }
