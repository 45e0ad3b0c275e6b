"""The training loop; it reads from top to bottom."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from caskd.store.errors import StoppedError
from caskd.store.io import check_room, counted, first_signal, tell
from caskd.train.checkpoint import (
    NonFiniteError,
    checkpoint_path,
    prune,
    save_checkpoint,
    step_of,
)
from caskd.train.config import TrainConfig
from caskd.train.data import Prefetcher, RowWeights, StepBatch
from caskd.train.engine import Ranks, TrainEngine, init_distributed
from caskd.train.metrics import (
    confidence_metrics,
    delegation_metrics,
    finite_or_none,
    step_metrics,
)
from caskd.train.model import SUM_NAMES, check_other_bytes
from caskd.train.run.failures import agree, planned_by_all_ranks, user_errors
from caskd.train.run.memory_forecast import size_of, table
from caskd.train.run.out_folder import clear_for_resume, record_save
from caskd.train.run.plan import RunPlan, plan_run
from caskd.train.run.run_log import RunLog, describe_run
from caskd.train.run.schedule import lr_at
from caskd.train.run.start import (
    batch_reader,
    loss_options,
    mask_of_student,
    pad_id,
    start_engine,
)
from caskd.train.run.validation import evaluate

MAX_SKIPPED_IN_A_ROW = 3


def train(config: TrainConfig, row_weights: RowWeights | None = None) -> Path:
    """Train a student from a store.

    Args:
        config: the options of `caskd train`.
        row_weights: a rule of your own that weighs the rows (`caskd.train.data.RowWeights`).

    Returns:
        The directory of the last checkpoint; of the run, after --dry-run.

    Raises:
        StoppedError: SIGTERM or SIGHUP stopped the run; it is saved, and exit code 143 or 129
            says that it is not finished.
        CaskdError: an option is wrong (checked before any weight is loaded), another process
            writes to --out, the loss stays non-finite, memory runs out, or a rank is lost.
    """
    if config.dry_run:
        plan = plan_run(config, row_weights)
        _warn(plan)
        tell("\n".join([*plan.summary(), *table(size_of(plan))]))
        return config.out

    with (
        planned_by_all_ranks(config, row_weights) as plan,
        user_errors(plan),
        init_distributed(config.timeout_minutes) as ranks,
    ):
        agree(ranks, plan)
        if ranks.rank == 0:
            _prepare_out(plan, ranks)
        engine = start_engine(plan, ranks)
        if ranks.rank == 0 and config.token_budget is not None:
            tell(_packing(bool(engine.module.packs)), flush=True)
        with _termination() as received:
            last = _fit(plan, engine, received)
            # Rank 0 has closed its files. A launcher kills the other ranks when the first one ends
            # with an error code, so no rank may end before this.
            engine.barrier()
        engine.close()
    step = step_of(last)
    if step < config.steps:
        number = received[0] if received else signal.SIGTERM  # of another rank
        raise StoppedError(_stopped(config, ranks, step, last, number), number)
    if ranks.rank == 0:
        tell(f"trained {counted(step, 'step')}, saved in {last}")
        tell(f"next: caskd export {config.out} MODEL", flush=True)
    return last


def _warn(plan: RunPlan) -> None:
    for line in plan.warnings():
        tell(f"caskd: {line}", file=sys.stderr, flush=True)


def _prepare_out(plan: RunPlan, ranks: Ranks) -> None:
    """Print the plan, and make --out ready for the files of this run."""
    config = plan.config
    tell("\n".join(plan.summary()), flush=True)
    _warn(plan)
    size = size_of(plan)
    moments = 8 * size.num_trained if size.adam else 0
    check_room(config.out, "--out", 4 * size.num_parameters + moments)  # of one checkpoint
    if config.resume:
        anew = plan.checkpoint is None
        message = clear_for_resume(config.out, plan.first_step, anew=anew)
        if message is not None:
            tell(message, flush=True)
    describe_run(plan, ranks)


def _fit(plan: RunPlan, engine: TrainEngine, received: list[int]) -> Path:
    """Run the remaining steps, evaluations and saves; return the last checkpoint."""
    config, step, saved = plan.config, plan.first_step, plan.checkpoint
    skipped = plan.done.skipped_steps if plan.done else 0
    in_a_row = other_bytes = 0
    mask = mask_of_student(plan, engine)
    reader = batch_reader(plan, engine.ranks, packed=bool(engine.module.packs), mask=mask)

    with (
        Prefetcher(reader.steps(step, config.steps), " ".join(config.store)) as batches,
        RunLog(plan, engine.ranks) as log,
    ):
        _evaluate_if_due(plan, engine, log, step)
        log.start_clock()
        for batch in batches:
            # -- one optimizer step ------------------------------------------------------------
            metrics, any_terminated = train_step(plan, engine, batch, bool(received))
            step = batch.step + 1

            # -- the same decision on every rank, because it uses reduced values only ----------
            good = engine.was_step_applied() and metrics["loss"] is not None
            in_a_row = 0 if good else in_a_row + 1
            skipped += not good
            metrics["skipped_steps"] = skipped
            if plan.tokens is not None:
                metrics |= {**batch.left_out, **batch.matched, "tail_mass": None}
                other_bytes += batch.left_out["other_bytes"]
                seen = (batch.step + 1 - plan.first_step) * config.global_batch_size
                check_other_bytes(other_bytes, seen, config.allow_other_bytes)
            if len(batch.examples_per_store) > 1:
                metrics["examples_per_store"] = batch.examples_per_store
            stops = any_terminated and step < config.steps
            if stops:
                metrics["stopped"] = True
            log.step(metrics, num_rows=batch.num_rows, data_seconds=batches.seconds_waited)
            batches.seconds_waited = 0.0
            if in_a_row == MAX_SKIPPED_IN_A_ROW:
                raise NonFiniteError(
                    f"step {step}: the loss or gradient was not finite in {in_a_row} steps in a "
                    "row; their weights were not saved; lower --lr, or inspect the store with "
                    "caskd store show"
                )

            # -- stop, evaluate, save ----------------------------------------------------------
            if stops:
                break
            is_best = _evaluate_if_due(plan, engine, log, step)
            is_due = config.save_every is not None and step % config.save_every == 0
            if is_best or is_due:
                saved = _save(plan, engine, log, step, skipped)
            log.start_clock()
        if saved is None or step_of(saved) != step:
            saved = _save(plan, engine, log, step, skipped)
    return saved


def train_step(
    plan: RunPlan, engine: TrainEngine, batch: StepBatch, terminated: bool
) -> tuple[dict[str, Any], bool]:
    """Forward, backward and update.

    The gradient is that of the sum over rows / count, with the count of the whole step. It does not
    depend on ranks, micro-batches or accumulation (see `TrainEngine.micro_step`).

    Returns:
        the metrics of the step, and whether any rank received SIGTERM or SIGHUP.
    """
    config = plan.config
    lr = lr_at(
        batch.step,
        peak=config.lr,
        steps=config.steps,
        warmup_steps=config.warmup_steps,
        schedule=config.schedule,
        decay_steps=config.decay_steps,
    )
    engine.set_lr(lr)
    engine.module.options = loss_options(plan, batch.step)
    count = batch.num_rows if config.normalise == "rows" else batch.num_examples
    count = max(1, count)  # a step without spans has no gradient
    scale = engine.ranks.world_size / count
    sums = engine.optimizer_step(batch.micro_batches, scale)
    flag = torch.tensor([float(terminated)], dtype=sums.dtype, device=sums.device)
    *totals, terminations = engine.sum_over_ranks(torch.cat([sums, flag])).tolist()
    named = dict(zip(SUM_NAMES, totals, strict=False))
    averages = step_metrics(
        named,
        knows_argmax=plan.store.knows_argmax,
        knows_topk=plan.tokens is None and plan.tail != "none",
    )
    metrics: dict[str, Any] = {"step": batch.step + 1, **averages}
    if plan.delegated is not None:
        num, loss, outside, *cells = totals[len(SUM_NAMES) :]
        metrics |= delegation_metrics(named, num, loss, outside, plan.delegated.rule)
        plan.delegated.add(cells, named["num_rows"], num)
    if config.confidence is not None:
        metrics |= confidence_metrics(named)
    metrics["loss"] = finite_or_none(averages["loss"] or 0.0)
    metrics["lr"] = lr
    metrics["grad_norm"] = finite_or_none(engine.grad_norm())
    return metrics, terminations > 0


def _evaluate_if_due(plan: RunPlan, engine: TrainEngine, log: RunLog, step: int) -> bool:
    """Evaluate at step 0, every --eval-every steps and at the last; True if it is the best."""
    config, store = plan.config, plan.eval_store
    due = step in (0, config.steps) or (config.eval_every and step % config.eval_every == 0)
    if store is None or not due or log.evaluations.has(step):
        return False
    # Always with the mask of the last step, so that all lines of eval.jsonl are comparable.
    engine.module.options = replace(loss_options(plan, step), objective=plan.objective)
    metrics = evaluate(
        engine,
        store,
        log.bar,
        pad_id=pad_id(plan),
        micro_batch_size=config.micro_batch_size,
        tokens=plan.eval_tokens,
    )
    log.evaluated(step, metrics)
    best = config.best_metric and log.evaluations.best(config.best_metric)
    return step > 0 and best == step


def _save(plan: RunPlan, engine: TrainEngine, log: RunLog, step: int, skipped: int) -> Path:
    """Save a checkpoint, and remove those that --keep-checkpoints does not keep."""
    config = plan.config
    directory = checkpoint_path(config.out, step)
    save_checkpoint(directory, engine, plan.tokenizer, plan.state_after(step, skipped))
    if engine.ranks.rank == 0:
        record_save(config.out, step)
    if config.keep_checkpoints is not None and engine.ranks.rank == 0:
        best = log.evaluations.best(config.best_metric) if config.best_metric else None
        prune(config.out, config.keep_checkpoints, () if best is None else (best,))
    return directory


def _packing(packs: bool) -> str:
    if packs:
        return "packing      on: examples share rows; the student's attention keeps them apart"
    return "packing      off: the student's attention mixes packed examples; rows are padded"


def _stopped(config: TrainConfig, ranks: Ranks, step: int, last: Path, number: int) -> str:
    """The message of a run that a signal stopped; rank 0 tells where it is saved."""
    name = signal.Signals(number).name
    if ranks.rank != 0:
        return f"rank {ranks.rank} stopped by {name} with all ranks"
    return (
        f"stopped by {name} after step {step:,} of {config.steps:,}, saved in {last}; run the "
        "same command with --resume"
    )


@contextmanager
def _termination() -> Iterator[list[int]]:
    """A list that gets the first SIGTERM or SIGHUP; the run then finishes the step and saves. A
    second signal kills the process."""
    received: list[int] = []
    with first_signal([signal.SIGTERM, signal.SIGHUP], received.append):
        yield received
