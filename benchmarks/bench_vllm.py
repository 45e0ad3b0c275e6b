"""CPU seconds a row of one teacher by backend, against the engine's own forward pass.

    python benchmarks/bench_vllm.py MODEL --text FILE

Needs vllm (see docs/large-teachers.md). The same examples run through one vLLM engine without
log-probabilities, with caskd's hook and with vLLM's own prompt log-probabilities, through vLLM's
server, and through transformers in this process. Every process counts: this one, the engine's and
the server's. Writes benchmarks/results/vllm.csv.
"""

import argparse
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from store_rows import setting, write_table

from caskd.models.engines import ServedModel, vllm_version
from caskd.precompute import PrecomputeConfig
from caskd.precompute.checkpoints import find_checkpoint
from caskd.precompute.rows import TopKTargets
from caskd.precompute.teacher.server_teacher import ServerTeacher
from caskd.precompute.teacher.transformers_teacher import TransformersTeacher
from caskd.precompute.teacher.vllm_source import VllmSource
from caskd.precompute.teacher.vllm_teacher import VllmTeacher
from caskd.store.io import tell
from caskd.store.write import ShardExample

TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds() -> float:
    """CPU seconds so far of this process and of those below it."""
    parents, used = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(entry.name)] = int(fields[1])
            used[int(entry.name)] = (int(fields[11]) + int(fields[12])) / TICKS
    total, level = 0.0, {os.getpid()}
    while level:
        total += sum(used[process] for process in level)
        level = {child for child, above in parents.items() if above in level}
    return total


def examples_of(tokenizer: Any, text: str, length: int, num: int) -> list[ShardExample]:
    """Texts of equal length; the first quarter of each is its prompt."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    found = []
    for n in range(num):
        own = np.asarray(ids[n * length : (n + 1) * length], np.uint32)
        response = (np.arange(length) >= length // 4).astype(np.uint8)
        found.append(ShardExample(n, own, response, 0, int(response.sum())))
    return found


@contextmanager
def served(model: str, k: int) -> Iterator[str]:
    """vLLM's OpenAI-compatible server in a process of its own; its URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["--model", model, "--dtype", "float32", "--enforce-eager", "--max-logprobs", str(k)]
    words += ["--port", str(port), "--host", "127.0.0.1", "--no-enable-prefix-caching"]
    words += ["--max-model-len", "1024"]
    program = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *words]
    process = subprocess.Popen(program, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while process.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def measured(arm: str, run: Callable[[], Any], rows: int, options: Any) -> dict[str, Any]:
    """CPU seconds of some rounds after one that is not counted; its rows under `rows`."""
    found = run()
    spent, walls = [], []
    for _ in range(options.rounds):
        before, began = cpu_seconds(), time.monotonic()
        run()
        spent.append(cpu_seconds() - before)
        walls.append(time.monotonic() - began)
    line = {
        "arm": arm,
        "rows": found if isinstance(found, Mapping) else None,
        "num_rows": rows,
        "cpu_ms_per_row": round(1e3 * float(np.median(spent)) / rows, 3),
        "cpu_ms_min": round(1e3 * min(spent) / rows, 3),
        "cpu_ms_max": round(1e3 * max(spent) / rows, 3),
        "wall_seconds": round(float(np.median(walls)), 2),
        "k": options.k,
        "rounds": options.rounds,
    }
    tell(f"{arm}: {line['cpu_ms_per_row']} ms of CPU a row")
    return line


def distances(rows: Any, plain: Any) -> dict[str, Any]:
    """How far the rows of an arm are from those of transformers."""
    total, own = plain["logsumexp"], rows["logsumexp"]
    label = (rows["label_logit"] - own) - (plain["label_logit"] - total)
    tail = np.abs(rows["tail_mass"] - plain["tail_mass"])
    return {
        "argmax_equal": float((rows["argmax"] == plain["argmax"]).mean()),
        "ids_in_order": round(float((rows["topk_ids"] == plain["topk_ids"]).mean()), 5),
        "label_logprob_max": f"{np.abs(label).max():.2g}",
        "logsumexp_max": f"{np.abs(own - total).max():.2g}" if own.any() else "",
        "tail_max": f"{tail.max():.2g}",
        "tail_relative_max": f"{(tail / plain['tail_mass']).max():.2g}",
        "rank_equal": round(float((rows["label_rank"] == plain["label_rank"]).mean()), 4),
    }


def engine_arms(config: Any, examples: Any, capture: Any, options: Any) -> Iterator[dict[str, Any]]:
    """The arms of one engine."""
    source = VllmSource.find(config)
    live, rows = source._live, sum(e.row_count for e in examples)
    prompts = [e.token_ids[:-1].tolist() for e in examples]
    hooked = VllmTeacher(live, capture, source.num_ids)
    arms: dict[str, Callable[[], Any]] = {
        "vllm, forward alone": lambda: live.get().run(prompts),
        "vllm, hooked rows": lambda: hooked.rows(examples),
        "vllm, its own log-probs": lambda: hooked._public(examples),
    }
    for arm, run in arms.items():
        yield measured(arm, run, rows, options)
    live.drop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--text", required=True, type=Path)
    parser.add_argument("--examples", type=int, default=16)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--k", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--notes", default="")
    options = parser.parse_args()
    config = PrecomputeConfig(
        teacher=options.model,
        data=(),
        store="",
        backend="vllm",
        dtype="float32",
        token_budget=options.examples * options.length,
        max_length=1023,
    )
    checkpoint = find_checkpoint(options.model, "float32")
    text = options.text.read_text()[:2_000_000]
    examples = examples_of(checkpoint.tokenizer, text, options.length, options.examples)
    rows = sum(example.row_count for example in examples)
    capture = {"kind": "topk", "top_k": options.k, "min_mass": 1.0}
    lines = list(engine_arms(config, examples, capture, options))
    num_ids = checkpoint.num_ids
    with served(options.model, options.k) as url:
        model = ServedModel.open(url, num_ids, num_ids, served_model=None)
        teacher = ServerTeacher([model], top_k=options.k, min_mass=1.0, concurrency=32)
        lines.append(measured("server (vLLM)", lambda: teacher.rows(examples), rows, options))
        teacher.close()
    plain = TransformersTeacher(
        checkpoint, vocab_size=num_ids, targets=TopKTargets(options.k, 1.0), device="cpu"
    )
    lines.append(measured("transformers", lambda: dict(plain.rows(examples)), rows, options))
    forward = lines[0]["cpu_ms_per_row"]
    exact = lines[-1]["rows"]
    for line in lines:
        rows = line.pop("rows")
        if rows is not None:
            line.update(distances(rows, exact))
        line["over_forward"] = round(line["cpu_ms_per_row"] / forward, 3)
    facts = {
        "model": Path(options.model).name,
        "vllm": vllm_version(),
        "torch": version("torch"),
        "transformers": version("transformers"),
    }
    write_table("vllm", lines, facts | setting(options.notes))


if __name__ == "__main__":
    main()
