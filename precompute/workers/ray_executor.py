"""`--executor ray`: one worker per actor; lost actors are replaced, failing shards are set aside.

Only this module and ray_cluster.py use Ray. The driver assigns shards and counts attempts. Actors
run the same worker as every other executor. The driver reads commits from the store, never from an
actor.
"""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from caskd.precompute.config import PrecomputeConfig
from caskd.precompute.planning import check_job
from caskd.precompute.workers.ray_cluster import actor_options, ray_session, with_absolute_paths
from caskd.precompute.workers.scheduling import PendingShards, WorkerInfo
from caskd.precompute.workers.worker import (
    ShardFailedError,
    Worker,
    WorkerStats,
    attempt_record,
    print_failure,
    type_and_message,
)
from caskd.store.errors import CaskdError, FailedShardsError
from caskd.store.io import Progress, progress, tell
from caskd.store.write import StoreWriter

MAX_ATTEMPTS = 3


def fill_on_ray(config: PrecomputeConfig, writer: StoreWriter) -> WorkerStats:
    """Fill every shard with `config.num_workers` actors; each shard has three attempts.

    Raises:
        UsageError: Ray is not installed, or its cluster does not run.
        FailedShardsError: no worker starts.
        CaskdError: a worker could not write.
    """
    with ray_session() as ray:
        pool = ActorPool(ray, with_absolute_paths(config), writer)
        facts = {"executor": "ray driver", "num_workers": config.num_workers}
        pending, num_rows = pool.pending, writer.spec.num_rows
        with (
            attempt_record(writer, facts, pool.stats),
            pool.managed(),
            progress("capture", num_rows, "rows", done=pending.rows_done) as bar,
        ):
            while True:
                pool.assign_shards()
                if pool.computing or pending.shards:
                    for call in ray.wait(list(pool.calls), num_returns=1)[0]:
                        pool.handle_result(call, bar)
                else:
                    pool.close()
                    if not pending.shards:
                        return pool.stats


class CaptureActor:
    """A worker in an actor's process; its methods return small plain values."""

    def __init__(self, config: PrecomputeConfig, info: WorkerInfo) -> None:
        self.config, self.info = config, info

    def start(self) -> None:
        """Check the identity and load the teacher, before any shard is assigned."""
        job = check_job(self.config)
        worker = Worker(self.config, job, StoreWriter(self.config.store), self.info)
        self.worker = worker.__enter__()

    def fill(self, shard: int) -> str | None:
        """Compute a shard and write it in the background; returns the error if it failed."""
        try:
            self.worker.fill(shard, lambda num_rows: None)
        except ShardFailedError as failure:
            # The traceback goes to this actor's own log, which Ray keeps.
            print_failure(failure)
            return failure.reason
        return None

    def close(self) -> WorkerStats:
        """Finish the shard that is being written."""
        self.worker.__exit__(None, None, None)
        return self.worker.stats


@dataclass(eq=False)
class WorkerSlot:
    """One of `num_workers` workers, and the actor that currently runs it."""

    rank: int
    actor: Any = None
    starting: bool = False
    shard: int | None = None
    """The shard that it computes; an attempt of it is counted when the actor dies."""
    computed: list[int] = field(default_factory=list)
    """Shards that this actor computed; the last may not be written yet."""
    failed_starts: int = 0


class ActorPool:
    """The actors of a job, and the shard of each."""

    def __init__(self, ray: Any, config: PrecomputeConfig, writer: StoreWriter) -> None:
        self.ray, self.config = ray, config
        self.pending, self.stats = PendingShards(writer), WorkerStats()
        self.slots = [WorkerSlot(rank) for rank in range(config.num_workers)]
        self.calls: dict[Any, WorkerSlot] = {}
        """Calls to actors that have not returned."""
        self._attempts: Counter[int] = Counter()
        options, warning = actor_options(ray.cluster_resources(), config)
        self._actor_class = ray.remote(CaptureActor).options(**options)
        if warning:
            _log(warning)

    @contextmanager
    def managed(self) -> Iterator[None]:
        """Kill all actors at the end, also after an error."""
        try:
            yield
        finally:
            for slot in self.slots:
                if slot.actor is not None:
                    self.ray.kill(slot.actor)

    @property
    def computing(self) -> bool:
        """Whether any actor computes a shard."""
        return any(slot.shard is not None for slot in self.slots)

    def assign_shards(self) -> None:
        """Assign a shard to every idle actor, and start an actor in every free slot."""
        busy = {slot.rank for slot in self.calls.values()}
        for slot in self.slots:
            if not self.pending.shards:
                return
            if slot.actor is None and slot.failed_starts < MAX_ATTEMPTS:
                self._start_actor(slot)
            elif slot.actor is not None and slot.rank not in busy:
                slot.shard = self.pending.take()
                self.calls[slot.actor.fill.remote(slot.shard)] = slot

    def _start_actor(self, slot: WorkerSlot) -> None:
        info = WorkerInfo(slot.rank, self.config.num_workers)
        slot.actor = self._actor_class.remote(self.config, info)
        slot.starting = True
        self.calls[slot.actor.start.remote()] = slot

    def _stop_actor(self, slot: WorkerSlot) -> None:
        """Kill an actor; shards that it has not written become pending again."""
        self.ray.kill(slot.actor)
        self.pending.put_back(slot.computed)
        self.pending.refresh()
        slot.actor, slot.starting, slot.shard, slot.computed = None, False, None, []

    def handle_result(self, call: Any, bar: Progress) -> None:
        """Handle the result of a call, or the loss of its actor."""
        slot = self.calls.pop(call)
        try:
            error = self.ray.get(call)
        except self.ray.exceptions.RayActorError as lost:
            error = f"its worker was lost ({type(lost).__name__})"
        except self.ray.exceptions.RayTaskError as failure:
            if not slot.starting:  # it could not write; another worker could not either
                raise _original(failure) from None
            error = type_and_message(failure.cause)
        if slot.starting:
            self._handle_start(slot, error)
        elif error is not None:
            self._handle_failure(slot, error)
        else:
            assert slot.shard is not None
            bar.advance(self.pending.rows_of[slot.shard], self._note())
            slot.computed.append(slot.shard)
            slot.shard = None

    def _note(self) -> str:
        ready = sum(slot.actor is not None and not slot.starting for slot in self.slots)
        return f"{ready} of {len(self.slots)} workers"

    def _handle_start(self, slot: WorkerSlot, error: str | None) -> None:
        slot.starting = False
        if error is None:
            slot.failed_starts = 0
            return
        slot.failed_starts += 1
        self._stop_actor(slot)
        _log(f"worker {slot.rank} did not start ({error})")
        if all(each.failed_starts >= MAX_ATTEMPTS for each in self.slots):
            raise FailedShardsError(
                f"{self.config.store}: no worker starts, the last error was {error}; committed "
                "shards are kept; fix the cause and run the same command again"
            )

    def _handle_failure(self, slot: WorkerSlot, error: str) -> None:
        """Count an attempt and replace the actor, even one that lives: its GPU may be unusable."""
        shard = slot.shard
        assert shard is not None
        self._attempts[shard] += 1
        _log(f"shard {shard} failed, attempt {self._attempts[shard]} of {MAX_ATTEMPTS}: {error}")
        if self._attempts[shard] < MAX_ATTEMPTS:
            self.pending.put_back([shard])
        else:
            self.stats.failed[shard] = f"{error}, {MAX_ATTEMPTS} times"
        self._stop_actor(slot)

    def close(self) -> None:
        """Let all actors finish writing; unwritten shards of lost actors become pending again."""
        ready = [slot for slot in self.slots if slot.actor and not slot.starting]
        closing = {slot.actor.close.remote(): slot for slot in ready}
        for call, slot in closing.items():
            try:
                stats = self.ray.get(call)
            except self.ray.exceptions.RayActorError as lost:
                _log(f"worker {slot.rank} was lost at the end ({type(lost).__name__})")
            except self.ray.exceptions.RayTaskError as failure:
                raise _original(failure) from None
            else:
                self.stats.num_non_finite += stats.num_non_finite
        for slot in self.slots:
            if slot.actor is not None:
                self._stop_actor(slot)
        self.calls.clear()


def _original(failure: Any) -> Exception:
    """The error that a remote call raised, if it is one of caskd's; else Ray's own."""
    error: Exception = failure.cause if isinstance(failure.cause, CaskdError) else failure
    return error


def _log(line: str) -> None:
    tell(line, file=sys.stderr, flush=True)
