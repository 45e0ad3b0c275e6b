"""Several devices: steps of every ZeRO stage over all of them, and a capture by two workers.

    python benchmarks/bench_devices.py --store DIR --student DIR --teacher DIR
    python benchmarks/bench_devices.py ... --on-cpu                 # two gloo ranks, two processes

The models are shapes of gpu_models.py with random weights. In float32 the losses and gradient norms
of every stage over all devices must equal those of one device, and two workers must write the
rows that one writes: the exit code is 1 where they do not. In bfloat16 the steps are timed; the
global batch is the same on one device and on all. Where there is one device, nothing is measured,
and a line says so. Writes benchmarks/results/devices.csv.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_capture import LENGTHS, TOP_K, capture_seconds, one_copy, quiet, write_corpus
from gpu_models import accept_shapes, random_model
from store_rows import RESULTS, setting, write_table

from caskd.models import open_tokenizer
from caskd.precompute import PrecomputeConfig, plan, precompute
from caskd.store.read import TeacherStore
from caskd.train import TrainConfig
from caskd.train.engine import TrainEngine, init_distributed
from caskd.train.model import LossOptions, StudentWithLoss
from caskd.train.run.loop import batch_reader, train_step
from caskd.train.run.plan import plan_run

MICRO_BATCH = 2
EXACT, TIMED = "float32", "bfloat16"
REFERENCE = (1, EXACT), (1, TIMED)  # of one device: stages differ in what they divide only
ALL = tuple(product((0, 1, 2, 3), (EXACT, TIMED)))
TOLERANCES = {"loss": 1e-4, "grad_norm": 1e-3}  # relative; a lost rank is off by a tenth and more
NUM_WORKERS = 2

Steps = list[dict[str, float]]


def steps_of(arguments: argparse.Namespace, cases: Sequence[tuple[int, str]]) -> dict[str, Steps]:
    """Loss, gradient norm and seconds of some steps of each case, on the ranks of this launch."""
    found: dict[str, Steps] = {}
    with tempfile.TemporaryDirectory() as folder, init_distributed() as ranks:
        for stage, dtype in cases:
            config = TrainConfig(
                store=(arguments.store,), student=arguments.student, out=Path(folder) / "run",
                steps=arguments.rounds + 1, global_batch_size=arguments.global_batch,
                micro_batch_size=MICRO_BATCH, objective="cat-dist", zero_stage=stage, dtype=dtype,
            )  # fmt: skip
            plan_of_run = plan_run(config)
            student = random_model(config.student, ranks.device, torch.float32)
            module = StudentWithLoss(student, LossOptions(plan_of_run.objective, plan_of_run.tail))
            engine = TrainEngine(module, plan_of_run.settings, ranks, weight_decay=0.0)
            lines = found[f"{stage}:{dtype}"] = []
            for batch in batch_reader(plan_of_run, ranks).steps(0, config.steps):
                started = time.perf_counter()
                metrics, _ = train_step(plan_of_run, engine, batch, False)
                seconds = time.perf_counter() - started
                lines.append({name: metrics[name] for name in TOLERANCES} | {"seconds": seconds})
            engine.close()
    return found


def launch(arguments: argparse.Namespace, num: int, cases: str) -> dict[str, Steps]:
    """The steps on so many ranks, by torchrun."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "steps.json"
        words = [
            sys.executable, "-m", "torch.distributed.run", "--standalone",
            "--nproc-per-node", str(num), __file__, *sys.argv[1:],
            "--steps-into", str(out), "--cases", cases,
            "--global-batch", str(MICRO_BATCH * arguments.devices),
        ]  # fmt: skip
        subprocess.run(words, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        return dict(json.loads(out.read_text()))


def difference(ours: Steps, theirs: Steps) -> str | None:
    """The first figure of the steps that is not that of the reference; None where there is none."""
    for step, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        for name, most in TOLERANCES.items():
            if not abs(one[name] - other[name]) <= most * abs(other[name]):
                return f"{name} of step {step} is {one[name]}, and {other[name]} on one device"
    return None


def step_lines(alone: dict[str, Steps], together: dict[str, Steps]) -> Iterator[dict[str, Any]]:
    """A line for each case on all devices."""
    reference = {dtype: alone[f"{stage}:{dtype}"] for stage, dtype in REFERENCE}
    for stage, dtype in ALL:
        own, one = together[f"{stage}:{dtype}"], reference[dtype]
        seconds, of_one = (
            statistics.median(line["seconds"] for line in lines[1:]) for lines in (own, one)
        )
        different = difference(own, one) if dtype == EXACT else None
        yield {
            "what": f"step, ZeRO {stage}, {dtype}", "seconds": round(seconds, 4),
            "seconds_on_one": round(of_one, 4), "speedup": round(of_one / seconds, 3),
            "check": (different or "equal") if dtype == EXACT else "timed only",
        }  # fmt: skip


def capture_config(arguments: argparse.Namespace, folder: Path, name: str) -> PrecomputeConfig:
    """One corpus for every capture."""
    data = tuple(str(folder / f"{kind}.jsonl") for kind in LENGTHS)
    return PrecomputeConfig(
        teacher=arguments.teacher, data=data, store=str(folder / name), top_k=TOP_K,
        shard_rows=arguments.shard_rows, token_budget=arguments.token_budget, deterministic=True,
        device=device_name(arguments, 0),
    )  # fmt: skip


def device_name(arguments: argparse.Namespace, number: int) -> str:
    return "cpu" if arguments.on_cpu else f"cuda:{number}"


def capture_as(arguments: argparse.Namespace, folder: Path, worker: int, num: int) -> None:
    """Fill a planned store as one of so many workers, each on its device."""
    config = capture_config(arguments, folder, f"by-{num}")
    own = {"worker": worker, "num_workers": num} if num > 1 else {}
    config = replace(config, device=device_name(arguments, worker), **own)
    with one_copy(config, random_weights=True), quiet():
        precompute(config)


def capture_line(arguments: argparse.Namespace) -> dict[str, Any]:
    """A capture by one worker and by two, and whether both wrote the same rows."""
    seconds, rows = {}, {}
    with tempfile.TemporaryDirectory(prefix="caskd-bench-") as name:
        folder = Path(name)
        tokenizer = open_tokenizer(arguments.teacher, "--teacher")
        for kind in LENGTHS:
            write_corpus(folder / f"{kind}.jsonl", kind, arguments.tokens, tokenizer)
        for num in (1, NUM_WORKERS):
            with quiet():
                plan(capture_config(arguments, folder, f"by-{num}"))
            words = [sys.executable, __file__, *sys.argv[1:], "--capture-in", str(folder)]
            workers = [
                subprocess.Popen([*words, "--worker", str(worker), "--num-workers", str(num)])
                for worker in range(num)
            ]
            codes = [worker.wait() for worker in workers]
            if any(codes):
                raise SystemExit(f"a capture by {num} workers failed")
            seconds[num] = capture_seconds(folder / f"by-{num}")
            rows[num] = all_rows(folder / f"by-{num}")
    different = [
        field for field, values in rows[1].items() if not np.array_equal(values, rows[2][field])
    ]
    return {
        "what": f"capture, {NUM_WORKERS} workers", "seconds": round(seconds[2], 3),
        "seconds_on_one": round(seconds[1], 3), "speedup": round(seconds[1] / seconds[2], 3),
        "check": f"fields differ: {different}" if different else "equal",
    }  # fmt: skip


def all_rows(store: Path) -> dict[str, Any]:
    """Every array of every row."""
    opened = TeacherStore.open(store)
    columns = vars(opened.read(range(len(opened))))
    return {name: value for name, value in columns.items() if isinstance(value, np.ndarray)}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", required=True)
    parser.add_argument("--student", required=True)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--rounds", type=int, default=3, help="steps that are measured")
    parser.add_argument("--tokens", type=int, default=2_000, help="captured, of each kind of text")
    parser.add_argument("--token-budget", type=int, default=2_048)
    parser.add_argument("--shard-rows", type=int, default=1_024)
    parser.add_argument("--on-cpu", action="store_true", help="two ranks and workers on the CPU")
    parser.add_argument("--notes", default="")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the table")
    for name in ("--steps-into", "--cases", "--capture-in"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    for name in ("--global-batch", "--worker", "--num-workers"):
        parser.add_argument(name, type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.devices = 2 if arguments.on_cpu else torch.cuda.device_count()
    return arguments


def main() -> int:
    arguments = parse_arguments()
    accept_shapes()
    if arguments.steps_into:
        found = steps_of(arguments, REFERENCE if arguments.cases == "reference" else ALL)
        if os.environ["RANK"] == "0":
            Path(arguments.steps_into).write_text(json.dumps(found))
        return 0
    if arguments.capture_in:
        folder = Path(arguments.capture_in)
        capture_as(arguments, folder, arguments.worker, arguments.num_workers)
        return 0
    if arguments.devices < 2:
        print(f"left out: {arguments.devices} CUDA device is here, and two are needed")
        return 0
    columns = {
        "devices": arguments.devices,
        "device": "cpu" if arguments.on_cpu else torch.cuda.get_device_name(),
        "torch": torch.__version__, **setting(arguments.notes),
    }  # fmt: skip
    alone, together = launch(arguments, 1, "reference"), launch(arguments, arguments.devices, "all")
    table = []
    for line in step_lines(alone, together):
        table.append(line)
        print(line, flush=True)
    write_table("devices", table, columns, arguments.out)
    table.append(capture_line(arguments))
    print(table[-1])
    write_table("devices", table, columns, arguments.out)
    return int(any(line["check"] not in ("equal", "timed only") for line in table))


if __name__ == "__main__":
    sys.exit(main())
