"""Time of a capture over that of bare forward passes of the same tokens by the same model.

    python benchmarks/bench_capture.py MODEL
    python benchmarks/bench_capture.py MODEL --device cuda --tokens 400000 --token-budget 16384 \\
        --one-process --shard-rows 4096

Every arm has a process of its own, with the model in it, and in each round all of them run once, in
turn; figures are medians over rounds, ratios medians of the rounds' ratios. With --one-process they
share one process and one copy of the weights, of which a GPU may not hold four; what a batch of
each corpus takes is then shown by part, too (`value`, the host waiting for the GPU after each).

The capture is the real `precompute`, encoding and writing included; its clock starts once the model
is loaded. Arms see the same examples in the same batches. The text is this repository's
documentation. Writes benchmarks/results/capture.csv.

The capture runs through the interface of teacher backends; the bare arms and the parts of a batch
need the model itself, and use the transformers backend's own modules.

Legend: B examples of a batch, L padded length, N rows of a tile, H hidden, V vocabulary.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from gpu_models import accept_shapes, random_teacher
from gpu_profile import add_profile
from store_rows import RESULTS, setting, write_table

from caskd.models import SplitModel, pad, padded_batches, peak_process_bytes, pick_device
from caskd.precompute import PrecomputeConfig, plan, precompute
from caskd.precompute.checkpoints import find_checkpoint, load_model
from caskd.precompute.planning.probe import encoded_bytes
from caskd.precompute.teacher import find_teacher
from caskd.precompute.teacher.transformers_source import TransformersSource
from caskd.store.corpus import logit_positions
from caskd.store.write import ShardExample, StoreWriter

ROOT = Path(__file__).parents[1]
LENGTHS = {"prompt-heavy": (800, 100), "response-heavy": (60, 700)}  # mean characters
BARE, BARE_ROWS, CAPTURE = "bare forward", "bare forward, head on rows only", "caskd capture"
NAIVE = "full logits, then top-k everywhere"
VLLM = "vLLM prompt_logprobs"
FLASH, EAGER = "flash_attention_2", "eager"
TOP_K, TILE_ROWS = 64, 1024


def write_corpus(path: Path, kind: str, num_tokens: int, tokenizer: Any) -> None:
    """JSONL of ragged examples: the documentation, cut and, where it ends, begun again."""
    text = "\n".join(file.read_text() for file in sorted(ROOT.glob("*.md")) + docs())
    text = known_text(text, tokenizer)
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


def known_text(text: str, tokenizer: Any) -> str:
    """The text without the characters that the tokenizer maps to its unknown token."""
    unknown = tokenizer.unk_token_id
    if unknown is None:
        return text
    known = {
        character
        for character in set(text)
        if unknown not in tokenizer(character, add_special_tokens=False)["input_ids"]
    }
    return "".join(character for character in text if character in known)


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
        if self.device.type == "cuda":  # what a kernel's first call and a first allocation cost
            self.forward(todo[0])
            torch.cuda.synchronize()
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
    """The real thing, from a store that is planned.

    Returns seconds for all shards of a copy of that store, as the capture itself records them.
    """
    store = Path(config.store)
    with tempfile.TemporaryDirectory(dir=store.parent) as folder:
        copy = Path(shutil.copytree(store, Path(folder) / "store"))
        with quiet():
            precompute(replace(config, store=str(copy)))
        return capture_seconds(copy)


def capture_seconds(store: Path) -> float:
    """What the slowest worker recorded."""
    records = [json.loads(file.read_text()) for file in (store / "environment").glob("*.json")]
    return max(record.get("seconds", 0.0) for record in records)


def prepare(configs: dict[str, PrecomputeConfig]) -> dict[str, tuple[int, int]]:
    """Plan each corpus' store; gives its rows and tokens."""
    sizes = {}
    for kind, config in configs.items():
        with quiet():
            spec = plan(config)
        sizes[kind] = (spec.num_rows, spec.num_tokens)
        print(f"{kind}: {spec.num_rows:,} rows of {spec.num_tokens:,} tokens", flush=True)
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
    return peak_process_bytes() / 2**20


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


def measure_together(
    configs: dict[str, PrecomputeConfig], rounds: int, skip: Sequence[str]
) -> Iterator[tuple[dict[tuple[str, str], list[float]], dict[str, float]]]:
    """The same with one copy of the weights in one process; what there is after each round.

    On a GPU one more round comes first and is not counted: it warms up.
    """
    some = next(iter(configs.values()))
    device = pick_device(some.device)
    arms: dict[str, Callable[[PrecomputeConfig], float]] = {
        arm: Bare(arm, some) for arm in (BARE, BARE_ROWS)
    }
    arms |= {CAPTURE: capture, NAIVE: Bare(NAIVE, some)}
    seconds: dict[tuple[str, str], list[float]] = {}
    peaks: dict[str, float] = {}
    for turn in range(-1 if device.type == "cuda" else 0, rounds):
        if turn == 0:
            seconds, peaks = {}, {}
        for kind, config in configs.items():
            for arm, timed in arms.items():
                if arm in skip:
                    continue
                forget_peak(device)
                seconds.setdefault((kind, arm), []).append(timed(config))
                peaks[arm] = max(peaks.get(arm, 0.0), peak_mib(device))
                print(f"round {turn} {kind} {arm}: {seconds[kind, arm][-1]:.3f} s", flush=True)
        yield seconds, peaks


def other_attention(device: torch.device) -> str | None:
    """The implementation to measure beside the model's own: flash attention on a GPU.

    On a CPU the plainest one takes its place, so that the arm is run. None where flash attention
    is not installed.
    """
    if device.type != "cuda":
        return EAGER
    return FLASH if find_spec("flash_attn") is not None else None


def measure_attention(
    configs: dict[str, PrecomputeConfig], rounds: int, model: Any
) -> dict[tuple[str, str], list[float]]:
    """Seconds of captures with the other attention, by (corpus, arm)."""
    device = pick_device(next(iter(configs.values())).device)
    name, seconds = other_attention(device), {}
    if name is None:
        print(f"{FLASH}: left out, flash-attn is not installed", flush=True)
        return {}
    others = {
        kind: replace(config, attention=name, store=f"{config.store}-{name}")
        for kind, config in configs.items()
    }
    before = model.config._attn_implementation
    model.set_attn_implementation(name)
    try:
        prepare(others)
        forget_peak(device)
        for turn in range(-1, rounds):
            for kind, config in others.items():
                taken = capture(config)
                if turn >= 0:  # the first one warms up
                    seconds.setdefault((kind, f"{CAPTURE}, {name}"), []).append(taken)
                    print(f"round {turn} {kind} {name}: {taken:.3f} s", flush=True)
    finally:
        model.set_attn_implementation(before)
    return seconds


def forget_peak(device: torch.device) -> None:
    """Measure peaks from here on; only a GPU's can be forgotten."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


@contextlib.contextmanager
def one_copy(config: PrecomputeConfig, *, random_weights: bool) -> Iterator[Any]:
    """Whoever loads the teacher while inside gets the same model, which is given."""
    device = pick_device(config.device)
    if random_weights:
        model = random_teacher(config.teacher, device)
    else:
        source = find_checkpoint(config.teacher, config.dtype, attention=config.attention)
        model = load_model(source, device)
    print("loaded", flush=True)
    with (
        mock.patch("caskd.precompute.teacher.transformers_teacher.load_model", return_value=model),
        mock.patch(f"{__name__}.load_model", return_value=model),
    ):
        yield model


@torch.inference_mode()
def parts_of(config: PrecomputeConfig, profile: Path | None) -> dict[str, float]:
    """Milliseconds of the parts of a batch in the middle, one waited for after the other.

    Where `profile` is given, that file gets the kernels of the batch.
    """
    writer = StoreWriter(config.store)
    teacher = TransformersSource.find(config).load(writer.spec)
    all_batches = list(batches(Path(config.store), config.token_budget))
    examples = all_batches[len(all_batches) // 2]
    places = [logit_positions(example.is_response) for example in examples]
    shown = [e.token_ids[: p[-1] + 1] for e, p in zip(examples, places, strict=True)]
    parts: dict[str, float] = {}
    for _ in range(2):  # the first one warms up
        clock = Clock(teacher.device)
        hidden = teacher.split.hidden_rows(teacher.arrange(shown), places)
        parts["body, ms"] = clock.lap()
        for start in range(0, len(hidden), TILE_ROWS):
            teacher.split.head(hidden[start : start + TILE_ROWS])
        parts["head, ms"] = clock.lap()
        rows = dict(teacher._fields(teacher.targets, examples, hidden))
        parts["head, row fields and copies, ms"] = clock.lap()
        rows = teacher.rows(examples)
        parts["until the next batch can start, ms"] = clock.passed()
        rows = dict(rows)
        parts["whole batch, ms"] = clock.lap()
    if profile is not None:
        add_profile(profile, f"a batch of {config.store}", lambda: dict(teacher.rows(examples)))
    parts["share of labels in the top-k"] = float((rows["label_rank"] < TOP_K).mean().round(3))
    rest = parts["whole batch, ms"] - parts["body, ms"] - parts["head, ms"]
    parts["all but body and head, ms"] = round(rest, 3)
    parts["rows"] = len(hidden)
    _, seconds_a_row = encoded_bytes(writer.spec, rows)
    parts["encoding, in a thread behind, ms"] = round(1000 * seconds_a_row * len(hidden), 3)
    return parts


class Clock:
    """Milliseconds between points at which the device has nothing left to do."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.lap()

    def lap(self) -> float:
        """Since the last lap."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        passed = self.passed()
        self.last = time.perf_counter()
        return passed

    def passed(self) -> float:
        """Since the last lap, whatever the device still does."""
        now = time.perf_counter()
        return round((now - getattr(self, "last", now)) * 1000, 3)


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
            if (kind, reference) not in seconds:
                continue
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
    parser.add_argument("--one-process", action="store_true", help="one copy of the weights")
    parser.add_argument(
        "--random-weights", action="store_true",
        help="MODEL is a shape of gpu_models.py; with --one-process",
    )  # fmt: skip
    parser.add_argument("--skip", nargs="*", default=[], help="arms to leave out")
    parser.add_argument("--profile", action="store_true", help="kernels, into OUT/profile.txt")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the table")
    args = parser.parse_args()
    if args.random_weights:
        accept_shapes()
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    torch.set_num_threads(args.threads)
    some = PrecomputeConfig(
        teacher=args.teacher, data=(), store="", dtype=args.dtype, device=args.device,
        attention=args.attention,
    )  # fmt: skip
    source = find_teacher(some)
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
        columns = {
            "model": source.name, "load_dtype": source.capture()["load_dtype"],
            "attention": source.capture()["attention"],
            "device": torch.cuda.get_device_name() if args.device.startswith("cuda") else "cpu",
            "threads": args.threads, "token_budget": args.token_budget, "rounds": args.rounds,
            "k": TOP_K, "shard_rows": args.shard_rows, "torch": torch.__version__,
            **setting(args.notes),
        }  # fmt: skip
        if args.one_process:
            with one_copy(configs["prompt-heavy"], random_weights=args.random_weights) as model:
                sizes = prepare(configs)
                for seconds, peaks in measure_together(configs, args.rounds, args.skip):
                    table = table_of(seconds, peaks, sizes)
                    write_table("capture", table, columns, args.out)
                other = measure_attention(configs, args.rounds, model)
                peaks |= dict.fromkeys(
                    (arm for _, arm in other), peak_mib(pick_device(args.device))
                )
                table += table_of(other, peaks, sizes)[:-1]
                for kind, config in configs.items():
                    profile = args.out / "profile.txt" if args.profile else None
                    parts = parts_of(config, profile)
                    table += [
                        {"corpus": kind, "arm": f"part: {name}", "value": value}
                        for name, value in parts.items()
                    ]
                    write_table("capture", table, columns, args.out)
        else:
            sizes = prepare(configs)
            table = table_of(*measure(configs, args.rounds, args.threads), sizes)
    for line in table:
        print(line)
    write_table("capture", table, columns, args.out)


if __name__ == "__main__":
    main()
