"""A whole optimizer step from a store, beside plain cross-entropy and beside a live teacher.

    python benchmarks/bench_step.py --student DIR --teacher DIR --store DIR --rounds 7
    python benchmarks/bench_step.py ... --only-steps        # one process, one GPU, two minutes

The steps share one student in one engine, on the same batches; each round takes every kind of step
once, in turn, so that a machine that slows down slows all of them. Peak memory is that of a process
that takes one kind of step only. Data wait and the two numbers of ranks come from `caskd train`
itself. Writes benchmarks/results/step.csv.

With --only-steps there are no checkpoints and no ranks; on a GPU the peaks are those of the steps
in the shared process, less the teacher's weights where it is not used, beside the forecast of
`train --dry-run`; and the wait is that of cat-dist steps behind the reader of `caskd train`.

Dimension letters: B examples, T tokens, N rows, V vocabulary.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from gpu_models import accept_shapes, random_model
from gpu_profile import add_profile
from store_rows import RESULTS, setting, write_table
from torch import Tensor
from torch.nn import functional as F

from caskd.models import open_model, peak_process_bytes
from caskd.train import TrainConfig
from caskd.train.checkpoint.manifest import verify
from caskd.train.checkpoint.save import load_checkpoint, load_weights, save_checkpoint
from caskd.train.data import MicroBatch
from caskd.train.data.prefetch import Prefetcher
from caskd.train.engine import TrainEngine, init_distributed
from caskd.train.model import SUM_NAMES, LossOptions, StudentWithLoss, load_student
from caskd.train.objectives import OBJECTIVES
from caskd.train.run.loop import batch_reader
from caskd.train.run.memory_forecast import forecast, size_of
from caskd.train.run.plan import RunPlan, plan_run

CROSS_ENTROPY, LIVE = "cross-entropy on whole logits", "live teacher, whole distribution"
COMPILED = "caskd cat-dist, compiled body"
OURS = {f"caskd {name}": name for name in ("xent", "dist", "cat-dist")} | {COMPILED: "cat-dist"}
KINDS = (CROSS_ENTROPY, *OURS, LIVE)


RIVALS = (
    (CROSS_ENTROPY, "over_cross_entropy"),
    (LIVE, "over_live_teacher"),
    ("caskd cat-dist", "over_cat_dist"),
)


class AnyStep(StudentWithLoss):
    """The student with ours and the rivals' losses, chosen by `kind`."""

    kind = CROSS_ENTROPY
    teacher: list[Any]

    def forward(self, batch: MicroBatch) -> Any:
        if self.kind in OURS:
            self.options = LossOptions(OBJECTIVES[OURS[self.kind]], "bucket")
            return super().forward(batch)
        ids, mask = batch.input_ids, batch.attention_mask
        hidden = self.hidden(ids, mask).flatten(0, 1)[batch.gather_index]
        logits = self.model.get_output_embeddings()(hidden).float()  # [N, V]
        loss = F.cross_entropy(logits, batch.labels, reduction="sum")
        if self.kind == LIVE:
            loss = 0.5 * loss - 0.5 * (self.taught(batch) * logits.log_softmax(1)).sum()
        return loss, torch.zeros(len(SUM_NAMES), dtype=torch.float64, device=loss.device)

    def hidden(self, *arguments: Any) -> Tensor:
        """[B, T, H] by the body as it is, or as torch compiles it."""
        if self.kind == COMPILED:
            return compiled_hidden()(self, *arguments)
        return super().hidden(*arguments)

    @torch.no_grad()
    def taught(self, batch: MicroBatch) -> Tensor:
        """[N, V] the teacher's probabilities, from a forward of now; its head on rows only."""
        model = self.teacher[0]
        body = model.base_model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
        hidden = body.last_hidden_state.flatten(0, 1)[batch.gather_index]
        return model.get_output_embeddings()(hidden).float().softmax(1)


@cache
def compiled_hidden() -> Any:
    """The student's body by torch.compile for any length; off a GPU traced, but not compiled."""
    backend = "inductor" if torch.cuda.is_available() else "aot_eager"
    return torch.compile(StudentWithLoss.hidden, dynamic=True, backend=backend)


def make_engine(
    plan: RunPlan, ranks: Any, teacher: str | None, *, random_weights: bool
) -> TrainEngine:
    """One engine for every kind of step; the teacher stays outside of it."""
    dtype = torch.bfloat16 if plan.config.dtype == "bfloat16" else torch.float32
    if random_weights:
        student = random_model(plan.config.student, ranks.device, torch.float32)
    else:
        student = load_student(plan.config.student, plan.vocab_size)
    module = AnyStep(student, LossOptions(plan.objective, "bucket"))
    module.teacher = []
    if teacher is not None and random_weights:
        module.teacher = [random_model(teacher, ranks.device, dtype).eval()]
    elif teacher is not None:
        model = open_model(teacher, "--teacher", dtype=str(dtype).removeprefix("torch."))
        module.teacher = [model.eval().to(ranks.device)]
    return TrainEngine(module, plan.settings, ranks, weight_decay=0.0)


def take_step(engine: TrainEngine, kind: str, batch: Any) -> float:
    """Seconds of forward, backward and update."""
    engine.module.kind = kind
    started = time.perf_counter()
    engine.optimizer_step(batch.micro_batches, engine.ranks.world_size / batch.num_rows)
    if engine.ranks.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def config_of(arguments: argparse.Namespace, out: Path) -> TrainConfig:
    return TrainConfig(
        store=(arguments.store,),
        student=arguments.student,
        out=out,
        steps=arguments.rounds + 2,
        global_batch_size=arguments.batch,
        micro_batch_size=arguments.batch,
        objective="cat-dist",
    )


def time_steps(arguments: argparse.Namespace) -> Iterator[tuple[str, str, float]]:
    """(kind, figure, value) of each kind of step, and of saving and loading a checkpoint."""
    kinds = KINDS if arguments.teacher else KINDS[:-1]
    with tempfile.TemporaryDirectory() as directory, init_distributed() as ranks:
        plan = plan_run(config_of(arguments, Path(directory) / "run"))
        random_weights = arguments.random_weights
        engine = make_engine(plan, ranks, arguments.teacher, random_weights=random_weights)
        seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
        peaks: dict[str, float] = dict.fromkeys(kinds, 0.0)
        kept, num_rows = [], []
        for round_, batch in enumerate(batch_reader(plan, ranks).steps(0, arguments.rounds + 1)):
            for kind in kinds[round_ % len(kinds) :] + kinds[: round_ % len(kinds)]:
                forget_peak()
                took = take_step(engine, kind, batch)
                peaks[kind] = max(peaks[kind], gpu_peak(engine, kind))
                if round_:  # the first one warms up
                    seconds[kind].append(took)
            kept.append(keep_fraction(engine, batch))
            num_rows.append(batch.num_rows)
        yield from step_figures(seconds)
        yield "caskd cat-dist", "keep_fraction", statistics.mean(kept)
        yield "every step", "num_rows", statistics.mean(num_rows)
        counters = torch._dynamo.utils.counters
        yield COMPILED, "graphs", counters["stats"]["unique_graphs"]
        yield COMPILED, "graph_breaks", sum(counters["graph_break"].values())
        if not arguments.only_steps:
            yield from time_checkpoint(plan, engine, Path(directory))
        else:
            if torch.cuda.is_available():
                yield from ((kind, "peak_mb", peak) for kind, peak in peaks.items())
            yield "train --dry-run", "forecast_mb", forecast(size_of(plan)).total / 1e6
            yield "caskd cat-dist", "data_wait_share", wait_share(plan, engine, arguments.rounds)
        if arguments.profile:
            for kind in (CROSS_ENTROPY, "caskd cat-dist"):
                call = partial(take_step, engine, kind, batch)
                add_profile(arguments.out / "profile.txt", f"step, {kind}", call)
        engine.close()


def step_figures(seconds: dict[str, list[float]]) -> Iterator[tuple[str, str, float]]:
    """Seconds of each kind of step, and the rounds' ratios."""
    for kind, own in seconds.items():
        yield kind, "step_s", statistics.median(own)
        for rival, name in RIVALS:
            if rival in seconds:
                pairs = zip(own, seconds[rival], strict=True)
                yield kind, name, statistics.median(ours / theirs for ours, theirs in pairs)


def forget_peak() -> None:
    """Measure peaks from here on, where there is a GPU."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def gpu_peak(engine: TrainEngine, kind: str) -> float:
    """MB at the most on the GPU; without a teacher that only waits there."""
    if not torch.cuda.is_available():
        return 0.0
    waiting = [] if kind == LIVE else engine.module.teacher
    weights = sum(p.nbytes for model in waiting for p in model.parameters())
    return (torch.cuda.max_memory_allocated() - weights) / 1e6


def wait_share(plan: RunPlan, engine: TrainEngine, rounds: int) -> float:
    """Of the time of some cat-dist steps, what is waiting for the reader of `caskd train`."""
    steps = batch_reader(plan, engine.ranks).steps(0, 2 * rounds + 1)
    with Prefetcher(steps, "store") as batches:
        for number, batch in enumerate(batches):
            if number == 1:  # the first one waits for the reader to start
                batches.seconds_waited, started = 0.0, time.perf_counter()
            take_step(engine, "caskd cat-dist", batch)
        return batches.seconds_waited / (time.perf_counter() - started)


def keep_fraction(engine: TrainEngine, batch: Any) -> float:
    """Of the rows of a batch, those that the CAT mask keeps."""
    engine.module.kind = "caskd cat-dist"
    measured = torch.cat([engine.evaluate(part) for part in batch.micro_batches])
    return float(measured[:, -1].mean())


def time_checkpoint(
    plan: RunPlan, engine: TrainEngine, directory: Path
) -> Iterator[tuple[str, str, float]]:
    path = directory / "checkpoint"
    started = time.perf_counter()
    save_checkpoint(path, engine, plan.tokenizer, plan.state_after(1, 0))
    yield "checkpoint", "save_s", time.perf_counter() - started
    started = time.perf_counter()
    verify(path)
    yield "checkpoint", "verify_s", time.perf_counter() - started
    started = time.perf_counter()
    with torch.no_grad():
        load_weights(path, load_student(plan.config.student, plan.vocab_size))
    load_checkpoint(path, engine)
    yield "checkpoint", "load_s", time.perf_counter() - started
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    yield "checkpoint", "mb", size / 1e6


def peak_memory(arguments: argparse.Namespace, kind: str) -> float:
    """MB at the most, of two steps of one kind in this process."""
    with tempfile.TemporaryDirectory() as directory, init_distributed() as ranks:
        plan = plan_run(config_of(arguments, Path(directory) / "run"))
        teacher = arguments.teacher if kind == LIVE else None
        engine = make_engine(plan, ranks, teacher, random_weights=arguments.random_weights)
        for batch in batch_reader(plan, ranks).steps(0, 2):
            take_step(engine, kind, batch)
        engine.close()
        if ranks.device.type == "cuda":
            return torch.cuda.max_memory_allocated() / 1e6
    return peak_process_bytes() / 1e6


def in_own_process(words: Sequence[str]) -> str:
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return done.stdout


def train_metrics(arguments: argparse.Namespace, num_ranks: int) -> list[dict[str, Any]]:
    """The steps of `caskd train` with the same global batch on so many ranks, but the first."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks)]
    with tempfile.TemporaryDirectory() as directory:
        in_own_process(
            [
                *launcher, "-m", "caskd.cli", "train", "--store", arguments.store,
                "--student", arguments.student, "--out", f"{directory}/run",
                "--steps", str(arguments.rounds + 1), "--objective", "cat-dist",
                "--global-batch-size", str(2 * arguments.batch),
                "--micro-batch-size", str(arguments.batch),
            ]
        )  # fmt: skip
        lines = (Path(directory) / "run" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines[1:]]


def measure(arguments: argparse.Namespace) -> Iterator[tuple[str, str, float]]:
    yield from time_steps(arguments)
    if arguments.only_steps:
        return
    peaks = {}
    for kind in KINDS:
        words = [__file__, *sys.argv[1:], "--peak-memory-of", kind]
        peaks[kind] = float(in_own_process(words).splitlines()[-1])
        yield kind, "peak_mb", peaks[kind]
    yield "caskd dist", "peak_over_live_teacher", peaks["caskd dist"] / peaks[LIVE]
    rates = {}
    for num_ranks in (1, 2):
        lines = train_metrics(arguments, num_ranks)
        rates[num_ranks] = statistics.median(line["tokens_per_second"] for line in lines)
        yield f"caskd train, {num_ranks} ranks", "rows_per_s", rates[num_ranks]
        waited = sum(line["data_seconds"] for line in lines)
        share = waited / sum(line["seconds"] for line in lines)
        yield f"caskd train, {num_ranks} ranks", "data_wait_share", share
    yield "caskd train, 2 ranks", "over_1_rank", rates[2] / rates[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--student", required=True)
    parser.add_argument("--teacher", help="the live one; may be left out with --only-steps")
    parser.add_argument("--store", required=True)
    parser.add_argument("--batch", type=int, default=8, help="examples of a step")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--notes", default="")
    parser.add_argument("--only-steps", action="store_true", help="no checkpoints and no ranks")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the table")
    parser.add_argument(
        "--random-weights", action="store_true", help="the models are shapes of gpu_models.py"
    )
    parser.add_argument("--profile", action="store_true", help="kernels, into OUT/profile.txt")
    parser.add_argument("--peak-memory-of", choices=KINDS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.random_weights:
        accept_shapes()
    if arguments.peak_memory_of:
        print(peak_memory(arguments, arguments.peak_memory_of))
        return
    if arguments.teacher is None and not arguments.only_steps:
        parser.error("--teacher is left out: add --only-steps")
    columns = {
        "batch": arguments.batch,
        "rounds": arguments.rounds,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        **setting(arguments.notes),
    }
    table = []
    for variant, figure, value in measure(arguments):
        table.append({"variant": variant, "figure": figure, "value": f"{value:.4g}"})
        print(f"{variant:34} {figure:24} {value:10.4g}", flush=True)
        if arguments.only_steps:  # what is measured stays, whatever stops the rest
            write_table("step", table, columns, arguments.out)
    write_table("step", table, columns, arguments.out)


if __name__ == "__main__":
    main()
