"""Time that training waits for data, and packing against padding.

    python benchmarks/bench_data.py --store STORE --student MODEL --steps 30 --rounds 5

Writes benchmarks/results/data.csv with two kinds of lines:

* `wait`: whole runs of `caskd train` on the store, from the local disk and from `s3://` with an
  empty cache (the server of bench_remote.py on the same machine, which delays each response by
  `--latency-ms`). The value is the seconds waited for data over the seconds of the steps. It
  excludes the first two steps, in which the reader starts; `first_step_s` has their wait.
* `packing`: forward and backward of the student over the same examples, cut by the same budget of
  tokens, packed and padded in turn. The value is the ratio of seconds, packed over padded: the
  median of the ratios within each round. A plain loss on the hidden states excludes the head.

Dimension letters: G examples of a step, T tokens of a row, H hidden width.
"""

import argparse
import csv
import json
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from bench_remote import object_server
from hardware import hardware

from caskd.train import TrainConfig, train
from caskd.train.data import MicroBatch, MicroBatchSplit, StoreMix, collate
from caskd.train.model import LossOptions, StudentWithLoss, load_student
from caskd.train.objectives import OBJECTIVES

RESULTS = Path(__file__).parent / "results" / "data.csv"
COLUMNS = (
    "table", "variant", "value", "low", "high", "rounds", "first_step_s", "step_s", "examples",
    "token_budget", "padding", "latency_ms", "student_parameters", "store_rows",
    "hardware", "cores", "load_average",
)  # fmt: skip
STARTING_STEPS = 2


def run_once(store: str, student: str, options: argparse.Namespace, seed: int) -> dict[str, float]:
    """One training run: its fraction of waiting, the first wait, and the seconds per step."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CASKD_CACHE"] = f"{folder}/cache"
        config = TrainConfig(
            store=(store,), student=student, out=Path(folder) / "run", steps=options.steps,
            global_batch_size=options.batch, token_budget=options.budgets[-1], seed=seed,
        )  # fmt: skip
        train(config)
        lines = [json.loads(x) for x in (config.out / "metrics.jsonl").read_text().splitlines()]
    steady = lines[STARTING_STEPS:]
    waited, seconds = (sum(line[name] for line in steady) for name in ("data_seconds", "seconds"))
    return {
        "share": waited / seconds,
        "first": sum(line["data_seconds"] for line in lines[:STARTING_STEPS]),
        "step": seconds / len(steady),
    }


def waits(options: argparse.Namespace) -> list[dict[str, object]]:
    """Measure the `wait` lines."""
    path = Path(options.store).resolve()
    runs: dict[str, list[dict[str, float]]] = {}
    with object_server(path.parent, options.latency_ms / 1e3):
        for number in range(options.rounds):
            for name, url in (("local", str(path)), ("s3, empty cache", f"s3://b/{path.name}")):
                runs.setdefault(name, []).append(run_once(url, options.student, options, number))
                print(f"round {number}: {name}: waited {runs[name][-1]['share']:.3%}", flush=True)
    return [
        {
            "table": "wait", "variant": name, **spread([run["share"] for run in found], 5),
            "first_step_s": round(statistics.median(run["first"] for run in found), 3),
            "step_s": round(statistics.median(run["step"] for run in found), 3),
            "token_budget": options.budgets[-1],
            "latency_ms": options.latency_ms if "s3" in name else 0,
        }
        for name, found in runs.items()
    ]  # fmt: skip


def packing(options: argparse.Namespace) -> list[dict[str, object]]:
    """Measure the `packing` lines."""
    mix = StoreMix.open([options.store])
    order, counts = mix.order(seed=0), mix.token_counts()
    model = load_student(options.student, mix.spec.vocab_size).train()
    student = StudentWithLoss(model, LossOptions(OBJECTIVES["xent"], "bucket"))
    lines = []
    for budget in options.budgets:
        if counts.max() > budget:
            print(f"budget {budget}: skipped, shorter than the longest example", flush=True)
            continue
        ratios, seconds, padding = [], [], []
        for number in range(options.rounds):
            examples = order.at(np.arange(number * options.batch, (number + 1) * options.batch))
            taken: dict[bool, float] = {}
            for packed in (False, True):
                split = MicroBatchSplit(
                    world_size=1, micro_batch_size=1, token_budget=budget, packed=packed
                )
                batches = [
                    collate(mix.read(part, ("argmax", "num_kept")), 0, packed=packed)
                    for (part,) in split.parts(examples, counts)
                ]
                if not packed:
                    laid_out = sum(batch.input_ids.numel() for batch in batches)
                    padding.append(laid_out / counts[examples].sum())
                taken[packed] = seconds_of(student, batches)
            ratios.append(taken[True] / taken[False])
            seconds.append(taken[True])
        lines.append(
            {
                "table": "packing", "variant": "packed over padded", **spread(ratios, 3),
                "step_s": round(statistics.median(seconds), 3), "token_budget": budget,
                "padding": round(statistics.median(padding), 3),
            }
        )  # fmt: skip
        print(lines[-1], flush=True)
    return lines


def seconds_of(student: StudentWithLoss, batches: Sequence[MicroBatch]) -> float:
    """Forward and backward of the student's body."""
    started = time.perf_counter()
    for batch in batches:
        hidden = student.hidden(batch.input_ids, batch.attention_mask, batch.position_ids)
        hidden.flatten(0, 1)[batch.gather_index].square().sum().backward()
    student.zero_grad()
    return time.perf_counter() - started


def spread(values: Sequence[float], digits: int) -> dict[str, object]:
    """Median and extremes."""
    return {
        "value": round(statistics.median(values), digits),
        "low": round(min(values), digits),
        "high": round(max(values), digits),
        "rounds": len(values),
    }


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", required=True)
    parser.add_argument("--student", required=True)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--budgets", type=int, nargs="+", default=[512, 1024, 2048])
    parser.add_argument("--latency-ms", type=float, default=50)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    lines = [*packing(options), *waits(options)]
    spec = StoreMix.open([options.store]).spec
    machine = {
        "student_parameters": load_student(options.student, spec.vocab_size).num_parameters(),
        "store_rows": spec.num_rows, "hardware": hardware(),
        "cores": os.cpu_count(), "load_average": round(os.getloadavg()[0], 1),
        "examples": options.batch,
    }  # fmt: skip
    with options.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows({**line, **machine} for line in lines)
    print(options.out.read_text())


if __name__ == "__main__":
    main()
