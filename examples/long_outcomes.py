"""Convert a wide table of model outcomes to the long form that `caskd eval --outcomes` reads.

    python examples/long_outcomes.py routerbench.parquet --out outcomes.parquet

RouterBench (arXiv 2403.12031): a row per question with `sample_id`, `eval_name`, and for each model
a column MODEL with its quality and a column `MODEL|total_cost`. It is published as a pickle, which
can run code when it is opened: convert it to Parquet with pandas where that does no harm.

    python examples/long_outcomes.py results/bench/*/*/*/*.json --out outcomes.parquet

LLMRouterBench (arXiv 2601.07206): a JSON file per data set, split and model, with `records`. Of
several files of one run the last by name counts; trial runs (`demo`) and unscored records do not.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq

COST = "|total_cost"
TEXTS, NUMBERS = ("example_id", "model", "task"), (
    "quality", "cost", "prompt_tokens", "output_tokens"
)  # fmt: skip
SCHEMA = pa.schema(
    [*((name, pa.string()) for name in TEXTS), *((name, pa.float64()) for name in NUMBERS)]
)


def wide_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of RouterBench: every column with a cost column beside it is a model."""
    table = pc.read_csv(path) if path.suffix == ".csv" else pq.read_table(path)
    names = table.column_names
    models = [name for name in names if name + COST in names]
    if not models or not {"sample_id", "eval_name"} <= set(names):
        sys.exit(f"{path}: expected sample_id, eval_name, and columns MODEL and MODEL{COST}")
    wanted = ["sample_id", "eval_name", *models, *(model + COST for model in models)]
    for row in table.select(wanted).to_pylist():
        for model in models:
            yield {
                "example_id": str(row["sample_id"]),
                "model": model,
                "task": row["eval_name"],
                "quality": float(row[model]),
                "cost": row[model + COST],
            }


def run_rows(paths: Iterable[Path]) -> Iterator[dict[str, Any]]:
    """Rows of LLMRouterBench: one file for each run of a model on a split of a data set."""
    runs = {}
    for path in sorted(paths):
        run = json.loads(path.read_text(encoding="utf-8"))
        if not run.get("demo"):
            runs[run["dataset_name"], run["split"], run["model_name"]] = run["records"]
    for (task, split, model), records in runs.items():
        for record in records:
            if record["score"] is not None:
                yield {
                    "example_id": f"{task}-{split}-{record['index']}",
                    "model": model,
                    "task": task,
                    "quality": float(record["score"]),
                    "cost": record["cost"],
                    "prompt_tokens": record["prompt_tokens"],
                    "output_tokens": record["completion_tokens"],
                }


def main(argv: Sequence[str]) -> None:
    """Convert the files, and print how many rows there are and of which models."""
    parser = argparse.ArgumentParser(description="Convert wide tables of outcomes to long ones.")
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--out", required=True, type=Path)
    options = parser.parse_args(argv)
    other = [path for path in options.files if path.suffix not in (".csv", ".parquet", ".json")]
    if other:
        sys.exit(f"{other[0]}: expected .csv, .parquet or .json; see the top of this script")
    rows = list(run_rows(path for path in options.files if path.suffix == ".json"))
    for path in options.files:
        if path.suffix != ".json":
            rows += wide_rows(path)
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), options.out)
    models = ", ".join(sorted({row["model"] for row in rows}))
    sys.stdout.write(f"{options.out}: {len(rows):,} rows of {models}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
