"""A whole optimizer step from a store, beside plain cross-entropy and beside a live teacher.

    python benchmarks/bench_step.py --student DIR --teacher DIR --store DIR --rounds 7

The steps share one student in one engine, on the same batches; each round takes every kind of step
once, in turn, so that a machine that slows down slows all of them. Peak memory is that of a process
that takes one kind of step only. Data wait and the two numbers of ranks come from `caskd train`
itself. Writes benchmarks/results/step.csv.

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
from pathlib import Path
from typing import Any

import torch
from store_rows import setting, write_table
from torch import Tensor
from torch.nn import functional as F

from caskd.train import TrainConfig
from caskd.train.checkpoint import load_checkpoint, load_weights, save_checkpoint, verify
from caskd.train.data import MicroBatch
from caskd.train.engine import TrainEngine, init_distributed
from caskd.train.model import SUM_NAMES, LossOptions, StudentWithLoss, load_student
from caskd.train.objectives import OBJECTIVES
from caskd.train.run.loop import batch_reader
from caskd.train.run.plan import RunPlan, plan_run

CROSS_ENTROPY, LIVE = "cross-entropy on whole logits", "live teacher, whole distribution"
OURS = {f"caskd {name}": name for name in ("xent", "dist", "cat-dist")}
KINDS = (CROSS_ENTROPY, *OURS, LIVE)


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

    @torch.no_grad()
    def taught(self, batch: MicroBatch) -> Tensor:
        """[N, V] the teacher's probabilities, from a forward of now; its head on rows only."""
        model = self.teacher[0]
        body = model.base_model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
        hidden = body.last_hidden_state.flatten(0, 1)[batch.gather_index]
        return model.get_output_embeddings()(hidden).float().softmax(1)


def make_engine(plan: RunPlan, ranks: Any, teacher: str | None) -> TrainEngine:
    """One engine for every kind of step; the teacher stays outside of it."""
    module = AnyStep(
        load_student(plan.config.student, plan.store.spec), LossOptions(plan.objective, "bucket")
    )
    module.teacher = []
    if teacher is not None:
        from transformers import AutoModelForCausalLM

        dtype = torch.bfloat16 if plan.config.dtype == "bfloat16" else torch.float32
        model = AutoModelForCausalLM.from_pretrained(teacher, dtype=dtype)
        module.teacher = [model.eval().to(ranks.device)]
    return TrainEngine(module, plan.settings, ranks, weight_decay=0.0)


def take_step(engine: TrainEngine, kind: str, batch: Any) -> float:
    """Seconds of forward, backward and update."""
    engine.module.kind = kind
    started = time.perf_counter()
    *others, last = batch.micro_batches
    for part in others:
        engine.micro_step(part, 1 / batch.num_rows, last=False)
    engine.micro_step(last, 1 / batch.num_rows, last=True)
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
    with tempfile.TemporaryDirectory() as directory, init_distributed() as ranks:
        plan = plan_run(config_of(arguments, Path(directory) / "run"))
        engine = make_engine(plan, ranks, arguments.teacher)
        seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
        kept = []
        for round_, batch in enumerate(batch_reader(plan, ranks).steps(0, arguments.rounds + 1)):
            order = KINDS[round_ % len(KINDS) :] + KINDS[: round_ % len(KINDS)]
            times = {kind: take_step(engine, kind, batch) for kind in order}
            if round_:  # the first one warms up
                for kind in KINDS:
                    seconds[kind].append(times[kind])
            kept.append(keep_fraction(engine, batch))
        for kind in KINDS:
            yield kind, "step_s", statistics.median(seconds[kind])
            for rival, name in ((CROSS_ENTROPY, "over_cross_entropy"), (LIVE, "over_live_teacher")):
                pairs = zip(seconds[kind], seconds[rival], strict=True)
                yield kind, name, statistics.median(ours / theirs for ours, theirs in pairs)
        yield "caskd cat-dist", "keep_fraction", statistics.mean(kept)
        yield from time_checkpoint(plan, engine, Path(directory))
        engine.close()


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
        load_weights(path, load_student(plan.config.student, plan.store.spec))
    load_checkpoint(path, engine)
    yield "checkpoint", "load_s", time.perf_counter() - started
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    yield "checkpoint", "mb", size / 1e6


def peak_memory(arguments: argparse.Namespace, kind: str) -> float:
    """MB at the most, of two steps of one kind in this process."""
    with tempfile.TemporaryDirectory() as directory, init_distributed() as ranks:
        plan = plan_run(config_of(arguments, Path(directory) / "run"))
        engine = make_engine(plan, ranks, arguments.teacher if kind == LIVE else None)
        for batch in batch_reader(plan, ranks).steps(0, 2):
            take_step(engine, kind, batch)
        engine.close()
        if ranks.device.type == "cuda":
            return torch.cuda.max_memory_allocated() / 1e6
    # Not getrusage: its figure starts at the parent's.
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1e3


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
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--store", required=True)
    parser.add_argument("--batch", type=int, default=8, help="examples of a step")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--notes", default="")
    parser.add_argument("--peak-memory-of", choices=KINDS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak_memory_of:
        print(peak_memory(arguments, arguments.peak_memory_of))
        return
    table = []
    for variant, figure, value in measure(arguments):
        table.append({"variant": variant, "figure": figure, "value": f"{value:.4g}"})
        print(f"{variant:34} {figure:24} {value:10.4g}", flush=True)
    columns = {
        "batch": arguments.batch,
        "rounds": arguments.rounds,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        **setting(arguments.notes),
    }
    write_table("step", table, columns)


if __name__ == "__main__":
    main()
