"""Time of a capture over that of bare forward passes of the same tokens by the same model.

    python benchmarks/bench_capture.py MODEL
    python benchmarks/bench_capture.py MODEL --device cuda --tokens 400000 --token-budget 16384

Every arm has a process of its own, with the model in it, and in each round all of them run once, in
turn; figures are medians over rounds, ratios medians of the rounds' ratios. The capture is the real
`precompute` into a compact store, encoding and writing included; its clock starts once the model is
loaded. The pilot, which a store has once (1/128 of its rows), is committed beforehand. Arms see the
same examples in the same batches. The text is this repository's documentation. Writes
benchmarks/results/capture.csv.

Legend: B examples of a batch, L padded length, N rows of a tile, H hidden, V vocabulary.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from store_rows import setting, write_table

from caskd.models import SplitModel, pad, padded_batches, pick_device
from caskd.precompute import PrecomputeConfig, plan, precompute
from caskd.precompute.teacher.loading import load_model
from caskd.precompute.teacher.source import find_checkpoint
from caskd.store.corpus import logit_positions
from caskd.store.read import TeacherStore
from caskd.store.write import ShardExample, StoreWriter

ROOT = Path(__file__).parents[1]
LENGTHS = {"prompt-heavy": (800, 100), "response-heavy": (60, 700)}  # mean characters
BARE, BARE_ROWS, CAPTURE = "bare forward", "bare forward, head on rows only", "caskd capture"
NAIVE = "full logits, then top-k everywhere"
VLLM = "vLLM prompt_logprobs"
TOP_K, TILE_ROWS = 64, 1024


def write_corpus(path: Path, kind: str, num_tokens: int, tokenizer: Any) -> None:
    """JSONL of ragged examples: the documentation, cut and, where it ends, begun again."""
    text = "\n".join(file.read_text() for file in sorted(ROOT.glob("*.md")) + docs())
    source, place, total = random.Random(0), 0, 0
    with path.open("w") as file:
        while total < num_tokens:
            record = {}
            for part, mean in zip(("prompt", "response"), LENGTHS[kind], strict=True):
                length = round(mean * source.uniform(0.3, 1.7))
                record[part] = text[place : place + length]
                place = (place + length) % (len(text) - 2000)
            total += len(tokenizer(record["prompt"] + record["response"])["input_ids"])
            file.write(json.dumps(record) + "\n")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress of plans and captures between the figures."""
    with (
        open(os.devnull, "w") as nothing,
        contextlib.redirect_stdout(nothing),
        contextlib.redirect_stderr(nothing),
    ):
        yield


def docs() -> list[Path]:
    """The documentation's pages."""
    return sorted((ROOT / "docs").glob("*.md"))


def batches(store: Path, token_budget: int) -> Iterator[list[ShardExample]]:
    """The batches that a capture of `store` computes."""
    writer = StoreWriter(store)
    for shard in range(writer.spec.num_shards):
        examples = writer.shard(shard).examples
        lengths = np.array([len(example.token_ids) for example in examples], np.int64)
        for positions in padded_batches(lengths, token_budget):
            yield [examples[position] for position in positions]


class Bare:
    """Forward passes that keep nothing, or what a few lines of transformers would keep."""

    def __init__(self, arm: str, config: PrecomputeConfig) -> None:
        source = find_checkpoint(config.teacher, config.dtype, attention=config.attention)
        self.arm, self.token_budget = arm, config.token_budget
        self.device = pick_device(config.device)
        self.model = load_model(source, self.device)
        self.split = SplitModel(self.model, "--teacher")

    @torch.inference_mode()
    def __call__(self, config: PrecomputeConfig) -> float:
        """Seconds for all batches of a planned store."""
        todo = list(batches(Path(config.store), self.token_budget))
        begin = time.perf_counter()
        for examples in todo:
            self.forward(examples)
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begin

    def forward(self, examples: list[ShardExample]) -> None:
        """One batch."""
        places = [logit_positions(example.is_response) for example in examples]
        shown = [e.token_ids[: p[-1] + 1] for e, p in zip(examples, places, strict=True)]
        batch = pad(shown)
        if self.arm == BARE_ROWS:
            hidden = self.split.hidden_rows(batch, places)  # [N, H]
            for start in range(0, len(hidden), TILE_ROWS):
                self.split.head(hidden[start : start + TILE_ROWS])
            return
        input_ids = torch.from_numpy(batch.input_ids).to(self.device)
        logits = self.model(input_ids=input_ids, use_cache=False).logits  # [B, L, V]
        if self.arm == NAIVE:
            top = logits.float().topk(TOP_K, dim=-1)
            _kept = top.values.cpu(), top.indices.cpu(), logits.float().logsumexp(dim=-1).cpu()


def capture(config: PrecomputeConfig) -> float:
    """The real thing, from a store that is planned and has its pilot.

    Returns seconds for all shards of a copy of that store, as the capture itself records them.
    """
    store = Path(config.store)
    with tempfile.TemporaryDirectory(dir=store.parent) as folder:
        copy = Path(shutil.copytree(store, Path(folder) / "store"))
        with quiet():
            precompute(replace(config, store=str(copy)))
        records = [json.loads(file.read_text()) for file in (copy / "environment").glob("*.json")]
    return max(record.get("seconds", 0.0) for record in records)


def prepare(configs: dict[str, PrecomputeConfig]) -> dict[str, tuple[int, int]]:
    """Plan each corpus' store and commit its pilot; gives its rows and tokens."""
    sizes = {}
    for kind, config in configs.items():
        with quiet():
            spec = plan(config)
        sizes[kind] = (spec.num_rows, spec.num_tokens)
        whole = config.store + "-whole"
        shutil.copytree(config.store, whole)
        with quiet():
            precompute(replace(config, store=whole))
        rows = TeacherStore.open(whole)
        columns = rows.read(range(len(rows)))
        StoreWriter(config.store).commit_pilot(
            {"topk_ids": columns.topk_ids, "num_kept": columns.num_kept}
        )
    return sizes


def serve(arm: str, config: PrecomputeConfig, threads: int, pipe: Any) -> None:
    """A process of one arm: it times the jobs that come through the pipe, then says its peak."""
    torch.set_num_threads(threads)
    with quiet():
        timed: Callable[[PrecomputeConfig], float]
        timed = capture if arm == CAPTURE else Bare(arm, config)
    pipe.send("ready")
    while (todo := pipe.recv()) is not None:
        pipe.send(timed(todo))
    pipe.send(peak_mib(pick_device(config.device)))


def peak_mib(device: torch.device) -> float:
    """Most memory that this process held: on its GPU, or else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss would be that of the process that started this one, if larger
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # macOS counts bytes


def measure(
    configs: dict[str, PrecomputeConfig], rounds: int, threads: int
) -> tuple[dict[tuple[str, str], list[float]], dict[str, float]]:
    """Seconds of every (corpus, arm) by round, and the peak memory of each arm in MiB."""
    context = multiprocessing.get_context("spawn")
    pipes, processes, peaks = {}, [], {}
    some = next(iter(configs.values()))
    for arm in (BARE, BARE_ROWS, CAPTURE, NAIVE):
        pipes[arm], theirs = context.Pipe()
        process = context.Process(target=serve, args=(arm, some, threads, theirs), daemon=True)
        process.start()
        theirs.close()
        pipes[arm].recv()
        processes.append(process)
    seconds: dict[tuple[str, str], list[float]] = {}
    for turn in range(rounds):
        for kind, config in configs.items():
            for arm, pipe in pipes.items():
                pipe.send(config)
                seconds.setdefault((kind, arm), []).append(pipe.recv())
                print(f"round {turn} {kind} {arm}: {seconds[kind, arm][-1]:.2f} s", flush=True)
    for arm, pipe in pipes.items():
        pipe.send(None)
        peaks[arm] = pipe.recv()
    for process in processes:
        process.join()
    return seconds, peaks


def table_of(
    seconds: dict[tuple[str, str], list[float]],
    peaks: dict[str, float],
    sizes: dict[str, tuple[int, int]],
) -> list[dict[str, Any]]:
    """One line per corpus and arm."""
    table = []
    for (kind, arm), times in seconds.items():
        num_rows, num_tokens = sizes[kind]
        median = statistics.median(times)
        line = {
            "corpus": kind, "arm": arm, "num_rows": num_rows, "num_tokens": num_tokens,
            "seconds": round(median, 3), "seconds_min": round(min(times), 3),
            "seconds_max": round(max(times), 3), "rows_per_s": round(num_rows / median, 1),
            "tokens_per_s": round(num_tokens / median, 1),
        }  # fmt: skip
        for name, reference in (("over_bare", BARE), ("over_bare_rows_only", BARE_ROWS)):
            ratios = [a / b for a, b in zip(times, seconds[kind, reference], strict=True)]
            line[name] = round(statistics.median(ratios), 3)
        table.append(line | {"peak_mib": round(peaks[arm])})
    return [*table, {"corpus": "", "arm": VLLM, "seconds": "not measured: vLLM is not installed"}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("teacher", help="a transformers folder or a hub id")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--attention", default="auto")
    parser.add_argument("--tokens", type=int, default=3072, help="tokens of each corpus, about")
    parser.add_argument("--token-budget", type=int, default=1024, help="tokens of a forward pass")
    parser.add_argument("--shard-rows", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--notes", default="", help="a column of the table, e.g. a shared machine")
    args = parser.parse_args()
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    torch.set_num_threads(args.threads)
    source = find_checkpoint(args.teacher, args.dtype, attention=args.attention)
    with tempfile.TemporaryDirectory(prefix="caskd-bench-") as folder:
        configs = {}
        for kind in LENGTHS:
            data = Path(folder) / f"{kind}.jsonl"
            write_corpus(data, kind, args.tokens, source.tokenizer)
            configs[kind] = PrecomputeConfig(
                teacher=args.teacher, data=(str(data),), store=str(Path(folder) / kind),
                top_k=TOP_K, shard_rows=args.shard_rows, dtype=args.dtype, device=args.device,
                attention=args.attention, token_budget=args.token_budget,
            )  # fmt: skip
        sizes = prepare(configs)
        seconds, peaks = measure(configs, args.rounds, args.threads)
    table = table_of(seconds, peaks, sizes)
    for line in table:
        print(line)
    columns = {
        "model": source.name, "load_dtype": source.load_dtype, "attention": source.attention,
        "device": torch.cuda.get_device_name() if args.device.startswith("cuda") else "cpu",
        "threads": args.threads, "token_budget": args.token_budget, "rounds": args.rounds,
        "k": TOP_K, "shard_rows": args.shard_rows, "torch": torch.__version__,
    }  # fmt: skip
    write_table("capture", table, columns | setting(args.notes))


if __name__ == "__main__":
    main()
