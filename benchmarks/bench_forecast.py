"""Peak memory of a capture over the forecast of `caskd plan --probe`.

    python benchmarks/bench_forecast.py MODEL
    python benchmarks/bench_forecast.py DIR --random-weights --device cuda --tokens 130000 \\
        --token-budget 16384 --shard-rows 16384

The probe and the capture have a process each and the same corpus, of long prompts and of long
answers; the peak is that of a GPU's memory, or of resident memory. (The forecast of
`train --dry-run` is beside its peak in step.csv.) Writes benchmarks/results/forecast.csv.
"""

import argparse
import contextlib
import multiprocessing
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

from bench_capture import LENGTHS, TOP_K, one_copy, peak_mib, quiet, write_corpus
from gpu_models import accept_shapes
from store_rows import RESULTS, setting, write_table

from caskd.models import pick_device
from caskd.precompute import PrecomputeConfig, plan, precompute
from caskd.precompute.planning import probe
from caskd.precompute.planning.probe import run_probe
from caskd.precompute.teacher import find_teacher

PROBE_SECONDS = 5.0


def forecast_mib(config: PrecomputeConfig) -> float:
    """What `caskd plan --probe` forecasts, with less time than a user gives it."""
    with mock.patch.object(probe, "PROBE_SECONDS", PROBE_SECONDS):
        found = run_probe(config, find_teacher(config), Path(config.store), 0)
    return float(found["memory_bytes"]) / 2**20


def captured_mib(config: PrecomputeConfig) -> float:
    """The peak of a capture."""
    precompute(config)
    return peak_mib(pick_device(config.device))


def serve(name: str, config: PrecomputeConfig, random_weights: bool, pipe: Any) -> None:
    """A process that sends one figure."""
    if random_weights:
        accept_shapes()
    whose = one_copy(config, random_weights=True) if random_weights else contextlib.nullcontext()
    with whose, quiet():
        plan(config)
        figure = {"forecast": forecast_mib, "measured": captured_mib}[name](config)
    pipe.send(figure)


def in_own_process(name: str, config: PrecomputeConfig, *, random_weights: bool) -> float:
    """A figure of a fresh process."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(name, config, random_weights, theirs))
    process.start()
    theirs.close()
    try:
        return float(ours.recv())
    except EOFError:
        raise SystemExit(f"the process of the {name} figure ended without it") from None
    finally:
        process.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("teacher", help="a transformers folder or a hub id")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tokens", type=int, default=3072, help="tokens of each kind, about")
    parser.add_argument("--token-budget", type=int, default=1024, help="tokens of a forward pass")
    parser.add_argument("--shard-rows", type=int, default=1024)
    parser.add_argument("--notes", default="")
    parser.add_argument(
        "--random-weights", action="store_true", help="MODEL is a shape of gpu_models.py"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the table")
    args = parser.parse_args()
    if args.random_weights:
        accept_shapes()
    config = PrecomputeConfig(
        teacher=args.teacher, data=(), store="", top_k=TOP_K, shard_rows=args.shard_rows,
        device=args.device, token_budget=args.token_budget,
    )  # fmt: skip
    tokenizer = find_teacher(config).tokenizer
    mib: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="caskd-bench-") as folder:
        files = [Path(folder) / f"{kind}.jsonl" for kind in LENGTHS]
        for file in files:
            write_corpus(file, file.stem, args.tokens, tokenizer)
        data = tuple(map(str, files))
        for name in ("forecast", "measured"):
            own = replace(config, data=data, store=str(Path(folder) / name))
            mib[name] = in_own_process(name, own, random_weights=args.random_weights)
    ratio = mib["measured"] / mib["forecast"]
    line = {
        "what": "capture", "forecast_mib": round(mib["forecast"]),
        "measured_mib": round(mib["measured"]), "measured_over_forecast": round(ratio, 4),
    }  # fmt: skip
    print(line)
    columns = {
        "model": Path(args.teacher).name, "device": args.device, "tokens": args.tokens,
        "token_budget": args.token_budget, "shard_rows": args.shard_rows, **setting(args.notes),
    }  # fmt: skip
    write_table("forecast", [line], columns, args.out)


if __name__ == "__main__":
    main()
