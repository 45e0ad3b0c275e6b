"""`--executor ray`: a worker in each of some actors, replaced when lost; poison shards set aside.

Ray is fenced in here and in ray_cluster.py. The driver hands out shards and counts attempts;
everything else is the same worker as elsewhere, and what is committed is read from the store, never
from an actor.
"""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from caskd.precompute.config import PrecomputeConfig
from caskd.precompute.planning import check_job
from caskd.precompute.workers.ray_cluster import actor_options, connected, for_any_folder
from caskd.precompute.workers.scheduling import Board, Seat
from caskd.precompute.workers.worker import (
    ShardFailedError,
    Tally,
    Worker,
    one_line,
    print_failure,
    recorded,
)
from caskd.store.errors import CaskdError, FailedShardsError
from caskd.store.io import Progress, progress
from caskd.store.write import StoreWriter

MAX_ATTEMPTS = 3


def fill_on_ray(config: PrecomputeConfig, writer: StoreWriter) -> Tally:
    """Fill every shard with `config.num_workers` actors; each shard is tried three times at most.

    Raises:
        UsageError: Ray is not installed or not there.
        FailedShardsError: no worker starts.
        CaskdError: what a worker could not write.
    """
    with connected() as ray:
        crew = Crew(ray, for_any_folder(config), writer)
        facts = {"executor": "ray driver", "num_workers": config.num_workers}
        board, num_rows = crew.board, writer.spec.num_rows
        with (
            recorded(writer, facts, crew.tally),
            crew.on_board(),
            progress("capture", num_rows, "rows", done=board.rows_done) as bar,
        ):
            while True:
                crew.give_work()
                if crew.working or board.left:
                    for answer in ray.wait(list(crew.waiting), num_returns=1)[0]:
                        crew.settle(answer, bar)
                else:
                    crew.close()
                    if not board.left:
                        return crew.tally


class CaptureActor:
    """A worker in an actor's process; what it returns is small and plain."""

    def __init__(self, config: PrecomputeConfig, seat: Seat) -> None:
        self.config, self.seat = config, seat

    def start(self) -> None:
        """Check the identity and load the teacher, before any shard is risked on this machine."""
        job = check_job(self.config)
        worker = Worker(self.config, job, StoreWriter(self.config.store), self.seat)
        self.worker = worker.__enter__()
        self.worker.run_pilot(quiet=True)

    def fill(self, shard: int) -> str | None:
        """Compute a shard and have it written; why it cannot be, or None."""
        try:
            self.worker.fill(shard, lambda num_rows: None)
        except ShardFailedError as failure:
            # Where it happened goes to this actor's own log, which Ray keeps.
            print_failure(failure)
            return failure.reason
        return None

    def close(self) -> Tally:
        """Finish what is being written."""
        self.worker.__exit__(None, None, None)
        return self.worker.tally


@dataclass(eq=False)
class Place:
    """One of the workers that were asked for, whoever holds it at the moment."""

    index: int
    actor: Any = None
    starting: bool = False
    shard: int | None = None
    """What it computes: the one to blame when the actor dies."""
    computed: list[int] = field(default_factory=list)
    """Shards of this actor; the last may not be written yet."""
    failed_starts: int = 0


class Crew:
    """The actors of a job, and what each is doing."""

    def __init__(self, ray: Any, config: PrecomputeConfig, writer: StoreWriter) -> None:
        self.ray, self.config = ray, config
        self.board, self.tally = Board(writer), Tally()
        self.places = [Place(index) for index in range(config.num_workers)]
        self.waiting: dict[Any, Place] = {}
        """What was asked of an actor and is not answered yet."""
        self._attempts: Counter[int] = Counter()
        options, advice = actor_options(ray.cluster_resources(), config)
        self._actor = ray.remote(CaptureActor).options(**options)
        if advice:
            _tell(advice)

    @contextmanager
    def on_board(self) -> Iterator[None]:
        """However it ends, no actor stays behind."""
        try:
            yield
        finally:
            for place in self.places:
                if place.actor is not None:
                    self.ray.kill(place.actor)

    @property
    def working(self) -> bool:
        """Whether any shard is in somebody's hands."""
        return any(place.shard is not None for place in self.places)

    def give_work(self) -> None:
        """Hand a shard to every idle actor, and an actor to every place that can use one."""
        busy = {place.index for place in self.waiting.values()}
        for place in self.places:
            if not self.board.left:
                return
            if place.actor is None and place.failed_starts < MAX_ATTEMPTS:
                self._hire(place)
            elif place.actor is not None and place.index not in busy:
                place.shard = self.board.take()
                self.waiting[place.actor.fill.remote(place.shard)] = place

    def _hire(self, place: Place) -> None:
        place.actor = self._actor.remote(self.config, Seat(place.index, self.config.num_workers))
        place.starting = True
        self.waiting[place.actor.start.remote()] = place

    def _dismiss(self, place: Place) -> None:
        """End an actor; what it has not written is to be done again."""
        self.ray.kill(place.actor)
        self.board.put_back(place.computed)
        self.board.refresh()
        place.actor, place.starting, place.shard, place.computed = None, False, None, []

    def settle(self, answer: Any, bar: Progress) -> None:
        """Take what an actor answered, or that it is lost."""
        place = self.waiting.pop(answer)
        try:
            reason = self.ray.get(answer)
        except self.ray.exceptions.RayActorError as error:
            reason = f"its worker was lost ({type(error).__name__})"
        except self.ray.exceptions.RayTaskError as error:
            if not place.starting:  # it could not write, and nobody else would fare better
                raise (error.cause if isinstance(error.cause, CaskdError) else error) from None
            reason = one_line(error.cause)
        if place.starting:
            self._started(place, reason)
        elif reason is not None:
            self._failed(place, reason)
        else:
            assert place.shard is not None
            bar.advance(self.board.rows[place.shard], self._note())
            place.computed.append(place.shard)
            place.shard = None

    def _note(self) -> str:
        ready = sum(place.actor is not None and not place.starting for place in self.places)
        return f"{ready} of {len(self.places)} workers"

    def _started(self, place: Place, reason: str | None) -> None:
        place.starting = False
        if reason is None:
            place.failed_starts = 0
            return
        place.failed_starts += 1
        self._dismiss(place)
        _tell(f"worker {place.index} does not start ({reason})")
        if all(each.failed_starts >= MAX_ATTEMPTS for each in self.places):
            raise FailedShardsError(
                f"{self.config.store}: no worker starts, the last because of {reason}; "
                "what is committed is kept. Mend that and run the same command again"
            )

    def _failed(self, place: Place, reason: str) -> None:
        """Count an attempt; also an actor that lives is replaced, its GPU may not be well."""
        shard = place.shard
        assert shard is not None
        self._attempts[shard] += 1
        _tell(f"shard {shard} failed, attempt {self._attempts[shard]} of {MAX_ATTEMPTS}: {reason}")
        if self._attempts[shard] < MAX_ATTEMPTS:
            self.board.put_back([shard])
        else:
            self.tally.failed[shard] = f"{reason}, {MAX_ATTEMPTS} times"
        self._dismiss(place)

    def close(self) -> None:
        """Let everybody finish writing; what a lost actor had not written is left on the board."""
        started = [place for place in self.places if place.actor and not place.starting]
        closing = {place.actor.close.remote(): place for place in started}
        for answer, place in closing.items():
            try:
                tally = self.ray.get(answer)
            except self.ray.exceptions.RayActorError as error:
                _tell(f"worker {place.index} was lost at the end ({type(error).__name__})")
            except self.ray.exceptions.RayTaskError as error:
                raise (error.cause if isinstance(error.cause, CaskdError) else error) from None
            else:
                self.tally.num_non_finite += tally.num_non_finite
        for place in self.places:
            if place.actor is not None:
                self._dismiss(place)
        self.waiting.clear()


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
