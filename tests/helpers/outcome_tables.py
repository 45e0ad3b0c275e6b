"""An outcome table of two models, and its report without the drawing."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from caskd.eval.config import EvalConfig
from caskd.eval.report.report import cascade_summary
from caskd.eval.study import analyze

Rows = list[dict[str, Any]]

COUNT = 40
RANDOM = np.random.default_rng(3)
SCORE = np.round(RANDOM.normal(size=COUNT), 1)
SMALL = (RANDOM.uniform(size=COUNT) < 0.5).astype(float)
LARGE = (RANDOM.uniform(size=COUNT) < 0.8).astype(float)
COST = {"tiny": RANDOM.uniform(1, 2, COUNT), "big": RANDOM.uniform(10, 20, COUNT)}


def rows(**changes: Any) -> Rows:
    """Rows of the two models; a change is one value for all rows of `tiny`."""
    found: Rows = []
    for model, quality in (("tiny", SMALL), ("big", LARGE)):
        for i in range(COUNT):
            row: dict[str, Any] = {
                "example_id": f"q{i}", "model": model, "quality": quality[i],
                "score": SCORE[i] if model == "tiny" else None, "cost": COST[model][i],
                "task": "even" if i % 2 == 0 else "odd",
            }  # fmt: skip
            found.append({**row, **(changes if model == "tiny" else {})})
    return found


def write(path: Path, table: Rows) -> str:
    """Write a table as JSONL, CSV or Parquet, by the name of the file."""
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in table))
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(table), path)
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(table[0]))
            writer.writeheader()
            writer.writerows(table)
    return str(path)


def config(
    tmp_path: Path, table: Rows | tuple[str, ...], name: str = "t.csv", **options: Any
) -> EvalConfig:
    """Flags for a table, or for the paths of tables."""
    files = table if isinstance(table, tuple) else (write(tmp_path / name, table),)
    options = {"small": ("tiny",), "large": "big", "out": str(tmp_path / "out"), **options}
    return EvalConfig(outcomes=files, **options)


def measure(*args: Any, **options: Any) -> dict[str, Any]:
    """The summary, without drawing the report."""
    return cascade_summary(analyze(config(*args, **options)))
