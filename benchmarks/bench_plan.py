"""Time and memory of `caskd plan` by the number of examples.

    python benchmarks/bench_plan.py --teacher HuggingFaceTB/SmolLM2-135M

For each number of examples of `--examples`, a corpus of distinct prompts and responses is written
and planned from the command line: checked, digested, tokenised, searched for repeats, laid out and
written. For each number of `--layout`, made-up token ids go through the same search and layout
without a file and a tokenizer, whose memory does not depend on the corpus. `tokenizer_us` is the
teacher's tokenizer alone, one batch after another, per example: the least that any plan can take.
Memory is the peak of resident memory, summed over all processes of the plan. Writes
results/plan.csv.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from store_rows import bare_identity, setting, write_table

from caskd.models import open_tokenizer
from caskd.precompute.planning.corpus_stats import CorpusStats
from caskd.store.corpus import TokenizedExample
from caskd.store.write import plan_store

WORDS = 12_000
MIB = 1 << 20
SAMPLE_SECONDS = 0.1


def write_corpus(path: Path, num: int) -> None:
    """Records of 20 to 60 words, all different."""
    rng = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = ["".join(rng.choice(letters, n)) for n in rng.integers(2, 9, WORDS)]
    with path.open("w", encoding="utf-8") as file:
        for n in range(num):
            chosen = [words[i] for i in rng.integers(0, WORDS, int(rng.integers(20, 60)))]
            half = len(chosen) // 2
            record = {"prompt": " ".join([str(n), *chosen[:half]]),
                      "response": " ".join(chosen[half:])}  # fmt: skip
            file.write(json.dumps(record) + "\n")


def made_up(num: int) -> Iterator[TokenizedExample]:
    """Examples of 30 to 90 random tokens, half of them response."""
    rng = np.random.default_rng(0)
    for n in range(num):
        if n % 10_000 == 0:
            tokens = rng.integers(0, 49_000, (10_000, 90)).astype(np.uint32)
            lengths = rng.integers(30, 91, 10_000).tolist()
        length = lengths[n % 10_000]
        mask = np.zeros(length, np.uint8)
        mask[length // 2 :] = 1
        yield TokenizedExample(tokens[n % 10_000, :length], mask, "ok", n, "all", length)


def lay_out(num: int, path: str) -> None:
    """Statistics, repeats and layout of `made_up` examples."""
    vocab = [b"t%d" % n for n in range(49_152)]
    stats = CorpusStats(len(vocab))
    kept = {"kind": "topk", "top_k": 64, "min_mass": 1.0}
    identity = bare_identity(kept, vocab, num, "fitted2")
    examples = stats.observe(made_up(num), skip_duplicates=False)
    plan_store(path, identity, examples, shard_rows=65_536, vocab=vocab)
    stats.facts()


class TreeMemory(threading.Thread):
    """Peak of the resident memory of a process and all below it, in bytes."""

    def __init__(self, root: int) -> None:
        super().__init__(daemon=True)
        self.root, self.peak, self.done = root, 0, threading.Event()

    def run(self) -> None:
        """Sample until `done`."""
        while not self.done.wait(SAMPLE_SECONDS):
            self.peak = max(self.peak, sum(map(_resident, _tree(self.root))))


def _tree(root: int) -> list[int]:
    found, waiting = [], [root]
    while waiting:
        found.append(pid := waiting.pop())
        for task in Path(f"/proc/{pid}/task").glob("*/children"):
            try:
                waiting += map(int, task.read_text().split())
            except OSError:
                continue
    return found


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def timed(command: list[str]) -> dict[str, Any]:
    """Run a command; seconds and peak memory."""
    before, started = os.times(), time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    memory = TreeMemory(process.pid)
    memory.start()
    if process.wait():
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    memory.done.set()
    memory.join()
    after = os.times()
    cpu = after.children_user + after.children_system
    cpu -= before.children_user + before.children_system
    return {"wall_s": round(time.monotonic() - started, 1), "cpu_s": round(cpu, 1),
            "peak_mib": round(memory.peak / MIB)}  # fmt: skip


def tokenizer_alone(teacher: str, corpus: Path, num: int) -> float:
    """Microseconds per example of the tokenizer on prompts with their responses."""
    tokenizer = open_tokenizer(teacher, "teacher")
    with corpus.open(encoding="utf-8") as file:
        records = [json.loads(line) for _, line in zip(range(num), file, strict=False)]
    texts = [record["prompt"] + record["response"] for record in records]
    started = time.process_time()
    for start in range(0, num, 256):
        tokenizer(texts[start : start + 256], add_special_tokens=False)
    return round((time.process_time() - started) / num * 1e6, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", help="transformers causal LM")
    parser.add_argument("--examples", type=int, nargs="*", default=[50_000, 200_000, 1_000_000])
    parser.add_argument("--layout", type=int, nargs="*", default=[200_000, 1_000_000, 10_000_000])
    parser.add_argument("--notes", default="", help="text of the notes column, e.g. shared machine")
    parser.add_argument("--lay-out", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.lay_out:
        lay_out(int(args.lay_out[0]), args.lay_out[1])
        return
    table: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for num in args.examples:
            corpus = root / "corpus.jsonl"
            write_corpus(corpus, num)
            command = [sys.executable, "-m", "caskd.cli", "plan", "--teacher", args.teacher,
                       "--data", str(corpus), "--store", str(root / f"plan-{num}")]  # fmt: skip
            row = {"stage": "plan", "examples": num, **timed(command)}
            row["tokenizer_us"] = tokenizer_alone(args.teacher, corpus, min(num, 20_000))
            table.append(row)
            print(row, flush=True)
        for num in args.layout:
            command = [sys.executable, __file__, "--lay-out", str(num), str(root / f"layout-{num}")]
            table.append({"stage": "layout", "examples": num, **timed(command)})
            print(table[-1], flush=True)
    for row in table:
        row["cpu_us_per_example"] = round(row["cpu_s"] / row["examples"] * 1e6, 1)
    write_table("plan", table, setting(args.notes))


if __name__ == "__main__":
    main()
