"""Time and memory of evaluating a cascade on many examples, without and with its report.

    python benchmarks/bench_eval.py

Answers are synthetic: 4 to 12 tokens each, with log-probabilities that predict whether the answer
is right. `arrays` starts from log-probabilities in memory: scores by ten rules, their curves and
figures, and 1,000 bootstrap replicates of all ten areas together. `arrays, exact` recomputes every
curve for each replicate; it runs few replicates and scales the seconds up. `files` is the whole of
`caskd eval` on two Parquet files with the same ten rules, report included. Each step runs in a
separate process, whose peak memory the table has. Writes results/eval.csv.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from store_rows import setting, write_table

from caskd.eval.answers import Ragged, digest
from caskd.eval.answers.predictions_file import SCHEMA
from caskd.eval.config import EvalConfig
from caskd.eval.curves import aurc, auroc, deferral_curve
from caskd.eval.evaluate import evaluate
from caskd.eval.rules import deferral_scores, fixed_rule
from caskd.eval.stats import area_replicates

RULES = ("average", "sum", "min", "max", "first-token", *(f"quantile-0.{i}" for i in range(1, 6)))
EXACT_DRAWS = 4


def answers(num_examples: int) -> tuple[Ragged, np.ndarray, np.ndarray]:
    """Make log-probabilities, and the qualities of both models."""
    generator = np.random.default_rng(0)
    hard = generator.uniform(size=num_examples)
    lengths = generator.integers(4, 13, num_examples)
    values = -generator.exponential(np.repeat(hard, lengths))
    small = (generator.uniform(size=num_examples) < 1.0 - hard).astype(float)
    large = (generator.uniform(size=num_examples) < 0.9).astype(float)
    return Ragged(values, np.concatenate(([0], np.cumsum(lengths)))), small, large


def measure_arrays(num_examples: int, num_draws: int, exact: bool) -> float:
    """Seconds from log-probabilities to intervals."""
    tokens, small, large = answers(num_examples)
    started = time.perf_counter()
    series = []
    for name in RULES:
        rule = fixed_rule(name)
        assert rule is not None, name
        score = deferral_scores(tokens, rule)
        deferral_curve(score, small, large)
        auroc(score, small)
        aurc(score, small)
        series.append((score, small))
    before = time.perf_counter() - started
    if exact:
        started = time.perf_counter()
        area_replicates(series, large, num_replicates=EXACT_DRAWS, exact=True)
        return before + (time.perf_counter() - started) * num_draws / EXACT_DRAWS
    area_replicates(series, large, num_replicates=num_draws)
    return time.perf_counter() - started


def write_file(path: Path, name: str, quality: np.ndarray, tokens: Ragged) -> None:
    """Write a predictions file."""
    count = quality.size
    same = pa.array(["x"] * count)
    names = pa.array([f"e{i}" for i in range(count)])
    offsets = pa.array(tokens.offsets.astype(np.int32))
    columns = {
        "example_id": names, "source_index": np.arange(count), "prompt_digest": names,
        "question_digest": names, "task": same, "text": same,
        "token_ids": pa.ListArray.from_arrays(offsets, np.ones(tokens.values.size, np.uint32)),
        "token_logprobs": pa.ListArray.from_arrays(offsets, tokens.values.astype(np.float32)),
        "reference": same, "quality": quality, "prompt_tokens": np.full(count, 20),
        "output_tokens": tokens.lengths, "seconds": np.full(count, 0.01),
    }  # fmt: skip
    header = {
        "format": "caskd-predictions", "version": 1, "caskd_version": "0",
        "model": {"name": name, "num_parameters": len(name) * 10**6, "tokenizer_digest": "0"},
        "quality": "exact_match", "decoding": {}, "data_digest": digest(b"data"),
    }  # fmt: skip
    table = pa.table(columns).cast(SCHEMA)
    pq.write_table(table.replace_schema_metadata({"caskd": json.dumps(header)}), path)


def measure_files(folder: Path) -> float:
    """Seconds of `caskd eval`."""
    started = time.perf_counter()
    small, large = (str(folder / f"{name}.parquet") for name in ("small", "large"))
    evaluate(EvalConfig(small=(small,), large=large, out=str(folder / "report"), rule=RULES))
    return time.perf_counter() - started


def step(words: list[str]) -> None:
    """Run one step in this process; print its seconds and peak memory."""
    kind, num_examples, num_draws, folder = words[0], int(words[1]), int(words[2]), Path(words[3])
    if kind == "files":
        seconds = measure_files(folder)
    else:
        seconds = measure_arrays(num_examples, num_draws, exact=kind == "arrays, exact")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "peak_mib": peak}))


def main() -> None:
    """Measure every step and write the table."""
    if sys.argv[1:2] == ["--step"]:
        step(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--examples", type=int, nargs="+", default=[20_000, 100_000, 1_000_000])
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--notes", default="")
    options = parser.parse_args()
    rows = []
    for num_examples in options.examples:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            tokens, small, large = answers(num_examples)
            write_file(folder / "small.parquet", "small", small, tokens)
            write_file(folder / "large.parquet", "a large one", large, tokens)
            for kind in ("arrays", "arrays, exact", "files"):
                words = [kind, str(num_examples), str(options.draws), name]
                done = subprocess.run(
                    [sys.executable, __file__, "--step", *words],
                    capture_output=True, text=True, check=True,
                )  # fmt: skip
                found = json.loads(done.stdout.splitlines()[-1])
                row = {"step": kind, "examples": num_examples, "rules": len(RULES),
                       "draws": options.draws, "seconds": round(found["seconds"], 2),
                       "peak_mib": round(found["peak_mib"])}  # fmt: skip
                print(row)
                rows.append(row)
    write_table("eval", rows, setting(options.notes))


if __name__ == "__main__":
    main()
