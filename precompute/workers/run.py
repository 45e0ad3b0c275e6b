"""The capture: fill every missing shard, seal, and say what comes next."""

import os
import sys
import time
from typing import Any

from caskd.precompute.config import PrecomputeConfig
from caskd.precompute.planning import Job, check_job, check_non_finite, plan_job
from caskd.precompute.workers.ray_cluster import import_ray
from caskd.precompute.workers.ray_executor import fill_on_ray
from caskd.precompute.workers.scheduling import Board, Seat, seat_of
from caskd.precompute.workers.signals import Stopped, StopSignals, stop_signals
from caskd.precompute.workers.worker import ShardFailedError, Tally, Worker, print_failure
from caskd.store.errors import FailedShardsError, StoppedError, UsageError
from caskd.store.format import StoreSpec, check_identity
from caskd.store.inspect import CaptureStatus
from caskd.store.io import SECONDS_BETWEEN_LINES, progress
from caskd.store.read import TeacherStore
from caskd.store.write import StoreWriter, find_store

MAX_FAILED_IN_A_ROW = 3


def precompute(config: PrecomputeConfig) -> TeacherStore | None:
    """Run the teacher over a corpus into a sealed store; running again completes what is missing.

    Any number of workers may run it for the same store, each with its number; see
    `--executor`, `--worker` and `--num-workers`. Whoever sees every shard committed seals.

    Returns:
        The store; None with `dry_run`.

    Raises:
        UsageError: a flag, a file or a value that cannot be.
        IdentityError: a store of another identity is there.
        TeacherError: NaN or Inf in more examples than --max-non-finite accepts.
        FailedShardsError: some shards cannot be computed; all others are committed.
        StoppedError: SIGTERM or SIGINT came; exit code 143 or 130.
    """
    seat = seat_of(config, os.environ)
    with stop_signals() as stop:
        try:
            return _capture(config, seat, stop)
        except Stopped as stopped:
            raise StoppedError(_how_far(config, stopped), stopped.number) from None


def _capture(config: PrecomputeConfig, seat: Seat, stop: StopSignals) -> TeacherStore | None:
    if config.executor == "ray":
        import_ray()
    job = check_job(config)
    _planned(config, job, seat)
    if config.dry_run:
        return None
    writer = StoreWriter(config.store)
    if writer.sealed:
        if seat.speaks:
            print(f"{config.store}: sealed, nothing to do; next: {_next_command(config)}")
        return TeacherStore.open(config.store)
    begin, tally = time.monotonic(), Tally()
    if writer.missing_shards():
        if config.executor == "ray":
            tally = fill_on_ray(config, writer)
        else:
            tally = _fill_here(config, job, writer, seat, stop)
        _report(config, writer, tally)
        # Each worker has counted its own; this is everybody's, and of runs before.
        _check_all(config, writer)
    totals = writer.seal()
    if seat.speaks:
        _print_summary(config, totals, time.monotonic() - begin)
    return TeacherStore.open(config.store)


def _planned(config: PrecomputeConfig, job: Job, seat: Seat) -> StoreSpec:
    """The plan that all workers share: made here if this one may, else by whoever does."""
    if seat.plans:
        return plan_job(config, job)
    if seat.waits:
        _wait_for_plan(config, seat)
    spec = find_store(config.store)
    if spec is None:
        raise UsageError(
            f"--num-workers is {seat.count} but nothing is planned at {config.store}; expected one "
            "plan for all workers: run caskd plan with the same options first"
        )
    check_identity(spec, job.identity, config.store)
    return spec


def _wait_for_plan(config: PrecomputeConfig, seat: Seat) -> None:
    """Wait for worker 0; should it fail, torchrun ends us too."""
    waited = 0.0
    while find_store(config.store) is None:
        time.sleep(0.2)
        waited += 0.2
        if waited >= SECONDS_BETWEEN_LINES:
            waited = 0.0
            print(
                f"worker {seat.index}: waiting for worker 0 to plan {config.store}; "
                "all nodes must see the same --store",
                file=sys.stderr,
            )


def _fill_here(
    config: PrecomputeConfig, job: Job, writer: StoreWriter, seat: Seat, stop: StopSignals
) -> Tally:
    """Fill shards in this process until none is left, by whomever."""
    failed_in_a_row = 0
    with Worker(config, job, writer, seat) as worker:
        worker.run_pilot(quiet=not seat.speaks)
        board = Board(writer)
        bar_of = progress(
            "capture", writer.spec.num_rows, "rows", done=board.rows_done, quiet=not seat.speaks
        )
        with bar_of as bar:

            def report(num_rows: int) -> None:
                bar.advance(num_rows)
                stop.check()

            while True:
                bar.advance(board.refresh())
                if not board.left:
                    break
                shard = board.take(seat.index, seat.count)
                try:
                    if not worker.fill(shard, report):
                        bar.advance(board.rows[shard])
                    failed_in_a_row = 0
                except ShardFailedError as failure:
                    worker.tally.failed[shard] = failure.reason
                    failed_in_a_row += 1
                    print_failure(failure)
                    _check_worker(failed_in_a_row, failure, config)
    return worker.tally


def _check_worker(
    failed_in_a_row: int, failure: ShardFailedError, config: PrecomputeConfig
) -> None:
    """A worker for which nothing works (a GPU after an illegal access) must not try every shard."""
    if failed_in_a_row == MAX_FAILED_IN_A_ROW:
        raise FailedShardsError(
            f"{config.store}: {failed_in_a_row} shards in a row failed, the last, {failure.shard}, "
            f"with {failure.reason}; what is committed is kept. Run the same command again, "
            "which tries them once more"
        ) from failure


def _report(config: PrecomputeConfig, writer: StoreWriter, tally: Tally) -> None:
    """Say what has to be known of a run before its store is sealed.

    Raises:
        FailedShardsError: it cannot be.
    """
    if tally.num_non_finite:
        print(
            f"warning: the teacher gave NaN or Inf in {tally.num_non_finite:,} examples; those "
            "rows are kept without a teacher (num_kept 0). Try --dtype bfloat16 or float32."
        )
    missing = set(writer.missing_shards())
    failed = {shard: why for shard, why in sorted(tally.failed.items()) if shard in missing}
    if failed:
        num_shards, (first, reason) = writer.spec.num_shards, next(iter(failed.items()))
        raise FailedShardsError(
            f"{config.store}: {num_shards - len(missing)} of {num_shards} shards are committed; "
            f"failed: {', '.join(map(str, failed))} (shard {first}: {reason}). Mend that, then run "
            "the same command again, which tries only them"
        )


def _check_all(config: PrecomputeConfig, writer: StoreWriter) -> None:
    view = CaptureStatus(writer.root, writer.spec)
    view.refresh()
    check_non_finite(view.statuses["non_finite"], writer.spec.num_examples, config.max_non_finite)


def _how_far(config: PrecomputeConfig, stopped: Stopped) -> str:
    """One line on what a signal left behind."""
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
    print(f"{config.store}: sealed, {num_rows:,} rows of {totals['num_examples']:,} examples")
    print(f"  examples    {statuses}")
    print(f"  size        {num_bytes:,} bytes, {num_bytes / num_rows:.1f} a row")
    print(f"  time        {seconds:.1f} s in this run")
    print(f"next: {_next_command(config)}")


def _next_command(config: PrecomputeConfig) -> str:
    return f"caskd train --store {config.store} --student MODEL --out RUN --objective cat-dist"
