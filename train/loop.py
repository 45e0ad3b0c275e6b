"""The training loop, to be read from top to bottom."""

import json
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from caskd.store.files import replace_file
from caskd.store.progress import progress
from caskd.train.batches import BatchReader, StepBatch, fields_to_read
from caskd.train.checkpoint import (
    NonFiniteError,
    load_checkpoint,
    save_checkpoint,
    versions,
)
from caskd.train.config import TrainConfig
from caskd.train.engine import Ranks, TrainEngine, connected
from caskd.train.manifest import checkpoint_path
from caskd.train.metrics import METRICS_FILE, MetricsFile, finite_or_none, report, step_metrics
from caskd.train.packing import keeps_examples_apart
from caskd.train.plan import RunPlan, plan_run
from caskd.train.read_ahead import ReadAhead
from caskd.train.rng import seed_everything
from caskd.train.schedule import lr_at
from caskd.train.student import (
    SUM_NAMES,
    LossOptions,
    StudentWithLoss,
    load_student,
    recompute_activations,
)

MAX_SKIPPED_IN_A_ROW = 3


def train(config: TrainConfig) -> Path:
    """Train a student from a store.

    Returns:
        The directory of the last checkpoint; of the run, after --dry-run.

    Raises:
        CaskdError: a mistake in the options, found before anything heavy; or a loss that stays
            non-finite.
    """
    plan = plan_run(config)
    if config.dry_run:
        print("\n".join(plan.summary()))
        return config.out

    with connected() as ranks:
        if ranks.rank == 0:
            print("\n".join(plan.summary()), flush=True)
            _describe_run(plan)
        engine = start_engine(plan, ranks)
        if ranks.rank == 0 and config.token_budget is not None:
            print(_packing(bool(engine.module.packs)), flush=True)
        if plan.checkpoint is not None:
            load_checkpoint(plan.checkpoint, engine)
        last = _fit(plan, engine)
        engine.close()
    return last


def _fit(plan: RunPlan, engine: TrainEngine) -> Path:
    """All steps that are left, and the checkpoints; returns the last of them."""
    config, first = plan.config, engine.ranks.rank == 0
    lines_of = MetricsFile(config.out / METRICS_FILE, plan.first_step) if first else nullcontext()
    skipped = plan.done.skipped_steps if plan.done else 0
    in_a_row, step = 0, plan.first_step
    reader = batch_reader(plan, engine.ranks, packed=bool(engine.module.packs))
    bar_of = progress("train", config.steps, "steps", done=step, quiet=not first)
    started = time.perf_counter()

    with (
        _termination_flag() as terminated,
        ReadAhead(reader.steps(step, config.steps), " ".join(config.store)) as batches,
        lines_of as metrics_file,
        bar_of as bar,
    ):
        for batch in batches:
            # -- one optimizer step ------------------------------------------------------------
            metrics, any_terminated = train_step(plan, engine, batch, terminated.is_set())
            step = batch.step + 1

            # -- the same decision on every rank: all of it comes from reduced values ----------
            good = engine.was_step_applied() and metrics["loss"] is not None
            in_a_row = 0 if good else in_a_row + 1
            skipped += not good

            # -- what the step says of itself --------------------------------------------------
            metrics["skipped_steps"] = skipped
            metrics["data_seconds"] = batches.seconds_waited
            metrics["seconds"] = time.perf_counter() - started
            if len(batch.examples_per_store) > 1:
                metrics["examples_per_store"] = batch.examples_per_store
            metrics["tokens_per_second"] = batch.num_rows / metrics["seconds"]
            if metrics_file is not None:
                metrics_file.write(metrics)
                report(bar, metrics)
            if in_a_row == MAX_SKIPPED_IN_A_ROW:
                raise NonFiniteError(
                    f"step {step}: loss or gradient not finite {in_a_row} times in a row; "
                    "nothing of it was saved. Lower --lr, or look at the store (caskd store show)."
                )

            # -- save now and then -------------------------------------------------------------
            if any_terminated:
                break
            if config.save_every and step % config.save_every == 0 and step < config.steps:
                _save(plan, engine, step, skipped)
            batches.seconds_waited, started = 0.0, time.perf_counter()

    last = _save(plan, engine, step, skipped)
    if first:
        print("\n".join(_closing(config, step, last)), flush=True)
    return last


def train_step(
    plan: RunPlan, engine: TrainEngine, batch: StepBatch, terminated: bool
) -> tuple[dict[str, Any], bool]:
    """Forward, backward and update; metrics of the step, and whether any rank was told to end.

    The gradient is that of sum over rows / count, with the count of the whole step: it does not
    depend on ranks, micro-batches or accumulation (see `TrainEngine.micro_step`).
    """
    config = plan.config
    lr = lr_at(batch.step, peak=config.lr, steps=config.steps, warmup_steps=config.warmup_steps)
    engine.set_lr(lr)
    count = batch.num_rows if config.normalise == "rows" else batch.num_examples
    scale = engine.ranks.world_size / count
    *others, last = batch.micro_batches
    parts = [engine.micro_step(part, scale, last=False) for part in others]
    sums = torch.stack([*parts, engine.micro_step(last, scale, last=True)]).sum(0)
    flag = torch.tensor([float(terminated)], dtype=sums.dtype, device=sums.device)
    *totals, terminations = engine.sum_over_ranks(torch.cat([sums, flag])).tolist()
    averages = step_metrics(dict(zip(SUM_NAMES, totals, strict=True)))
    metrics: dict[str, Any] = {"step": batch.step + 1, **averages}
    metrics["loss"] = finite_or_none(averages["loss"] or 0.0)
    metrics["lr"] = lr
    metrics["grad_norm"] = finite_or_none(engine.grad_norm())
    return metrics, terminations > 0


def start_engine(plan: RunPlan, ranks: Ranks) -> TrainEngine:
    """The student under DeepSpeed, with fresh optimizer state."""
    config = plan.config
    seed_everything(config.seed + ranks.rank)
    model = load_student(config.student, plan.store.spec)
    if config.gradient_checkpointing:
        recompute_activations(model)
    options = LossOptions(config.objective, config.w, config.tail)
    packs = config.token_budget is not None and keeps_examples_apart(model)
    student = StudentWithLoss(model, options, packs=packs)
    return TrainEngine(student, plan.settings, ranks, weight_decay=config.weight_decay)


def batch_reader(plan: RunPlan, ranks: Ranks, *, packed: bool = False) -> BatchReader:
    """What this rank reads of the stores."""
    config, tokenizer = plan.config, plan.tokenizer
    return BatchReader(
        store=plan.store,
        order=plan.order,
        row_fields=fields_to_read(plan.objective),
        pad_id=tokenizer.pad_token_id or 0,  # masked; any id that has an embedding will do
        global_batch_size=config.global_batch_size,
        cut=replace(plan.cut, packed=packed),
        rank=ranks.rank,
        pin_memory=ranks.device.type == "cuda",
    )


def _packing(packs: bool) -> str:
    if packs:
        return "packing      on: examples share rows, and the student keeps them apart"
    return "packing      off: the student's attention does not keep packed examples apart; padded"


def _closing(config: TrainConfig, step: int, last: Path) -> list[str]:
    """What was reached, where it is, and what to type next."""
    if step < config.steps:
        return [
            f"stopped by SIGTERM after step {step:,} of {config.steps:,}, saved in {last}",
            "next: the same command with --resume",
        ]
    return [f"trained {step:,} steps, saved in {last}", f"next: caskd export {config.out} MODEL"]


def _save(plan: RunPlan, engine: TrainEngine, step: int, skipped: int) -> Path:
    directory = checkpoint_path(plan.config.out, step)
    save_checkpoint(directory, engine, plan.tokenizer, plan.state_after(step, skipped))
    return directory


def _describe_run(plan: RunPlan) -> None:
    """Put config.json beside the metrics: the options as resolved, and the versions."""
    plan.config.out.mkdir(parents=True, exist_ok=True)
    content = {"config": plan.config.to_json(), "deepspeed": plan.settings, "versions": versions()}
    replace_file(plan.config.out / "config.json", json.dumps(content, indent=1).encode())


@contextmanager
def _termination_flag() -> Iterator[threading.Event]:
    """Set by the first SIGTERM, upon which the step is finished and saved; the second one kills."""
    flag = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield flag  # signals are the main thread's
        return

    def on_signal(number: int, frame: FrameType | None) -> None:
        flag.set()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    before = signal.signal(signal.SIGTERM, on_signal)
    try:
        yield flag
    finally:
        signal.signal(signal.SIGTERM, before)
