"""The cost of sharing a capture: two workers against one, Ray against one process.

    python benchmarks/bench_executors.py [--teacher MODEL --data FILE] [--rounds 5]

Each line is one kind of capture in separate single-threaded processes; figures are medians over
rounds. `seconds` is the time of the slowest worker from the loaded teacher to its last commit, as
recorded under environment/; `wall_s` includes loading and Ray's start. Without --teacher, a tiny
random model captures a random corpus. It is so fast that a shard of 65,536 rows takes seconds even
on a CPU, which makes the overhead visible. Two workers get smaller shards, to share them evenly.
Writes results/executors.csv.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "tests"))

from helpers.tiny import ragged_records, save_tiny, write_jsonl  # noqa: E402
from store_rows import setting, write_table  # noqa: E402

ROWS_A_RECORD = 13  # approximately, for `ragged_records`

CASES = {
    "one worker": ["local"],
    "two workers": ["local 0 2", "local 1 2"],
    "torchrun": ["torchrun 2"],
    "ray, one worker": ["ray 1"],
    "ray, two workers": ["ray 2"],
}


def command(words: list[str], worker: str) -> list[str]:
    """Command line of one process."""
    executor, *numbers = worker.split()
    caskd = [sys.executable, "-m", "caskd.cli"]
    if executor == "torchrun":
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        caskd = [*launcher, "--nproc-per-node", *numbers, "-m", "caskd.cli"]
    flags = {"local": ["--worker", "--num-workers"], "ray": ["--num-workers"]}.get(executor, [])
    numbered = [word for pair in zip(flags, numbers, strict=False) for word in pair]
    return [*caskd, "precompute", *words, "--executor", executor, *numbered]


def capture(words: list[str], store: Path, workers: list[str]) -> tuple[float, float, int]:
    """Plan and fill a store; return worker seconds, wall seconds and shards computed twice."""
    words, environ = [*words, "--store", str(store)], {**os.environ, "OMP_NUM_THREADS": "1"}
    quiet = {"env": environ, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    subprocess.run([sys.executable, "-m", "caskd.cli", "plan", *words], check=True, **quiet)
    begin = time.perf_counter()
    processes = [subprocess.Popen(command(words, worker), **quiet) for worker in workers]
    for process in processes:
        _, said = process.communicate()
        assert process.returncode == 0, said
    wall = time.perf_counter() - begin
    attempts = [json.loads(file.read_text()) for file in (store / "environment").iterdir()]
    attempts = [attempt for attempt in attempts if "worker" in attempt]
    shutil.rmtree(store)
    overtaken = sum(attempt["num_shards_overtaken"] for attempt in attempts)
    return max(attempt["seconds"] for attempt in attempts), wall, overtaken


def compare(words: list[str], store: Path, cases: list[str], rounds: int) -> list[dict[str, Any]]:
    """Run every case once per round; return medians."""
    runs: dict[str, list[tuple[float, float, int]]] = {case: [] for case in cases}
    for number in range(rounds):
        for case in cases:
            runs[case].append(capture(words, store, CASES[case]))
            print(f"round {number}, {case}: {runs[case][-1]}", flush=True)
    alone = statistics.median(seconds for seconds, _, _ in runs["one worker"])
    lines = []
    for case, times in runs.items():
        seconds = statistics.median(seconds for seconds, _, _ in times)
        lines.append(
            {
                "case": case,
                "seconds": round(seconds, 2),
                "over_one_worker": round(alone / seconds, 3),
                "wall_s": round(statistics.median(wall for _, wall, _ in times), 2),
                "shards_begun_twice": statistics.median(twice for _, _, twice in times),
            }
        )
        print(lines[-1])
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", help="transformers folder; default: a tiny random model")
    parser.add_argument("--data", help="corpus with prompt and response, for --teacher")
    parser.add_argument(
        "--rows", type=int, default=250_000, help="approximate size of the random corpus"
    )
    parser.add_argument("--shard-rows", type=int, nargs="+", default=[65_536, 8_192])
    parser.add_argument("--top-k", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--notes", default="", help="text of the notes column, e.g. shared machine")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="caskd-bench-") as folder:
        teacher, data = args.teacher, args.data
        if teacher is None:
            teacher = str(save_tiny(Path(folder) / "tiny"))
            records = ragged_records(args.rows // ROWS_A_RECORD)
            data = str(write_jsonl(Path(folder) / "data.jsonl", records))
        words = ["--teacher", teacher, "--data", data, "--top-k", str(args.top_k)]
        table = []
        for shard_rows in args.shard_rows:
            words_here = [*words, "--shard-rows", str(shard_rows)]
            lines = compare(words_here, Path(folder) / "store", args.cases, args.rounds)
            table += [{**line, "shard_rows": shard_rows} for line in lines]
    facts = {
        "teacher": Path(args.teacher).name if args.teacher else "tiny random",
        "rounds": args.rounds,
    }
    write_table("executors", table, facts | setting(args.notes))


if __name__ == "__main__":
    main()
