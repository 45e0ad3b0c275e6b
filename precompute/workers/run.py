"""`caskd precompute`: fill every missing shard, seal the store, and print the next command."""

import os
import sys
import time
from typing import Any

from caskd.precompute.config import PrecomputeConfig
from caskd.precompute.planning import Job, check_job, check_non_finite, plan_job
from caskd.precompute.teacher import follow, rank_group
from caskd.precompute.workers.ray_executor import fill_on_ray
from caskd.precompute.workers.scheduling import PendingShards, WorkerInfo, worker_info
from caskd.precompute.workers.signals import Stopped, StopSignals, stop_signals
from caskd.precompute.workers.worker import ShardFailedError, Worker, WorkerStats, print_failure
from caskd.store.errors import FailedShardsError, StoppedError, UsageError
from caskd.store.format import StoreSpec, check_identity
from caskd.store.imports import require
from caskd.store.inspect import CaptureStatus
from caskd.store.io import SECONDS_BETWEEN_LINES, counted, progress, tell
from caskd.store.read import TeacherStore
from caskd.store.write import StoreWriter, find_store

MAX_FAILED_IN_A_ROW = 3


def precompute(config: PrecomputeConfig) -> TeacherStore | None:
    """Run the teacher over a corpus into a sealed store; a rerun completes the missing shards.

    Any number of workers may run it on the same store, each with its number; see `--executor`,
    `--worker` and `--num-workers`. The worker that finds every shard committed seals the store.

    Returns:
        The store; None with `dry_run`, and from rank 1 on of a divided teacher.

    Raises:
        UsageError: an option, a file or a value is invalid.
        IdentityError: the store exists and has another identity.
        TeacherError: NaN or Inf in more examples than --max-non-finite accepts.
        FailedShardsError: some shards could not be computed; all others are committed.
        LostTeacherError: a rank of a divided teacher ended.
        StoppedError: SIGTERM, SIGINT or SIGHUP stopped the run; exit code 143, 130 or 129.
    """
    with rank_group(config, os.environ) as group:
        if group is not None and group.rank > 0:
            follow(config, group)
            return None
        info = worker_info(config, os.environ)
        with stop_signals() as stop:
            try:
                return _capture(config, info, stop)
            except Stopped as stopped:
                raise StoppedError(_stopped_line(config, stopped), stopped.number) from None


def _capture(config: PrecomputeConfig, info: WorkerInfo, stop: StopSignals) -> TeacherStore | None:
    if config.executor == "ray":
        require("ray", extra="ray", needed_by="--executor ray")
    job = check_job(config)
    _plan(config, job, info)
    if config.dry_run:
        return None
    writer = StoreWriter(config.store)
    if writer.sealed:
        if info.prints:
            tell(f"{config.store}: already sealed, nothing to do; next: {_next_command(config)}")
        return TeacherStore.open(config.store)
    begin, stats = time.monotonic(), WorkerStats()
    if writer.missing_shards():
        if config.executor == "ray":
            stats = fill_on_ray(config, writer)
        else:
            stats = _fill_here(config, job, writer, info, stop)
        _report(config, writer, stats)
        # Each worker checked its own examples; this checks those of all workers and earlier runs.
        _check_all(config, writer)
    totals = writer.seal()
    if info.prints:
        _print_summary(config, totals, time.monotonic() - begin)
    return TeacherStore.open(config.store)


def _plan(config: PrecomputeConfig, job: Job, info: WorkerInfo) -> StoreSpec:
    """Return the plan that all workers share; the worker that may plan writes it."""
    if info.plans:
        return plan_job(config, job)
    if info.waits_for_plan:
        _wait_for_plan(config, info)
    spec = find_store(config.store)
    if spec is None:
        raise UsageError(
            f"--num-workers {info.world_size}: nothing is planned at {config.store}; "
            "expected one plan for all workers; run caskd plan with the same options first"
        )
    check_identity(spec, job.identity, config.store)
    return spec


def _wait_for_plan(config: PrecomputeConfig, info: WorkerInfo) -> None:
    """Wait for worker 0 to plan; if it fails, torchrun ends this process too."""
    waited = 0.0
    while find_store(config.store) is None:
        time.sleep(0.2)
        waited += 0.2
        if waited >= SECONDS_BETWEEN_LINES:
            waited = 0.0
            tell(
                f"worker {info.rank}: waiting for worker 0 to plan {config.store}; "
                "all nodes must see the same --store",
                file=sys.stderr,
            )


def _fill_here(
    config: PrecomputeConfig, job: Job, writer: StoreWriter, info: WorkerInfo, stop: StopSignals
) -> WorkerStats:
    """Fill shards in this process until no shard of the store is pending."""
    failed_in_a_row = 0
    with Worker(config, job, writer, info) as worker:
        pending = PendingShards(writer)
        progress_bar = progress(
            "capture", writer.spec.num_rows, "rows", done=pending.rows_done, quiet=not info.prints
        )
        with progress_bar as bar:

            def report(num_rows: int) -> None:
                bar.advance(num_rows)
                stop.check()

            while True:
                bar.advance(pending.refresh())
                if not pending.shards:
                    break
                shard = pending.take(info.rank, info.world_size)
                try:
                    if not worker.fill(shard, report):
                        bar.advance(pending.rows_of[shard])
                    failed_in_a_row = 0
                except ShardFailedError as failure:
                    worker.stats.failed[shard] = failure.reason
                    failed_in_a_row += 1
                    print_failure(failure)
                    _check_worker(failed_in_a_row, failure, config)
    return worker.stats


def _check_worker(
    failed_in_a_row: int, failure: ShardFailedError, config: PrecomputeConfig
) -> None:
    """Stop a worker whose shards all fail (its GPU may be unusable after an illegal access)."""
    if failed_in_a_row == MAX_FAILED_IN_A_ROW:
        raise FailedShardsError(
            f"{config.store}: {failed_in_a_row} shards in a row failed, the last, {failure.shard}, "
            f"with {failure.reason}; committed shards are kept; run the same command again to "
            "retry the others"
        ) from failure


def _report(config: PrecomputeConfig, writer: StoreWriter, stats: WorkerStats) -> None:
    """Print warnings of a run before its store is sealed.

    Raises:
        FailedShardsError: shards that failed are still missing.
    """
    if stats.num_non_finite:
        tell(
            f"warning: the teacher produced NaN or Inf in {stats.num_non_finite:,} examples; those "
            "rows are stored without teacher values (num_kept 0); to try --dtype bfloat16 or "
            "--dtype float32, capture another --store"
        )
    missing = set(writer.missing_shards())
    failed = {shard: error for shard, error in sorted(stats.failed.items()) if shard in missing}
    if failed:
        num_shards, (first, error) = writer.spec.num_shards, next(iter(failed.items()))
        raise FailedShardsError(
            f"{config.store}: {num_shards - len(missing)} of {num_shards} shards are committed; "
            f"failed: {', '.join(map(str, failed))} (shard {first}: {error}); fix the cause, then "
            "run the same command again, which retries only those"
        )


def _check_all(config: PrecomputeConfig, writer: StoreWriter) -> None:
    view = CaptureStatus(writer.root, writer.spec)
    view.refresh()
    check_non_finite(view.statuses["non_finite"], writer.spec.num_examples, config.max_non_finite)


def _stopped_line(config: PrecomputeConfig, stopped: Stopped) -> str:
    """One line on the state of the store after a signal."""
    if find_store(config.store) is None:
        return f"stopped by {stopped}, nothing is planned yet; run the same command again"
    store = TeacherStore.open(config.store, allow_unsealed=True)
    return (
        f"stopped by {stopped} with {store.num_committed_shards()} of {store.spec.num_shards} "
        "shards committed; run the same command again to go on"
    )


def _print_summary(config: PrecomputeConfig, totals: dict[str, Any], seconds: float) -> None:
    num_rows, num_bytes = totals["num_rows"], sum(totals["bytes"].values())
    statuses = ", ".join(f"{count:,} {name}" for name, count in totals["statuses"].items())
    examples = counted(totals["num_examples"], "example")
    tell(f"{config.store}: sealed, {counted(num_rows, 'row')} of {examples}")
    tell(f"  examples    {statuses}")
    per_row = num_bytes / num_rows
    tell(f"  size        {num_bytes:,} bytes, {per_row:.1f} bytes per row with its tokens")
    tell(f"  time        {seconds:.1f} s in this run")
    tell(f"next: {_next_command(config)}")


def _next_command(config: PrecomputeConfig) -> str:
    return f"caskd train --store {config.store} --student MODEL --out RUN --objective cat-dist"
