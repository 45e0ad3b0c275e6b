"""A worker: a loaded teacher that fills shards, in a process of any executor.

Legend: R rows of a shard, k cells kept per row.
"""

import os
import platform
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from typing import Any

from caskd.precompute.config import PrecomputeConfig
from caskd.precompute.planning import Job, check_non_finite
from caskd.precompute.rows import Fields, targets_of
from caskd.precompute.teacher import Teacher
from caskd.precompute.workers.fill import TokenBudget, start_shard
from caskd.precompute.workers.scheduling import WorkerInfo
from caskd.store.commits import commit_record
from caskd.store.errors import CaskdError, IdentityError, LostTeacherError, reason
from caskd.store.io import tell
from caskd.store.write import ShardWork, StoreWriter

Report = Callable[[int], None]


@dataclass
class WorkerStats:
    """Counts of one worker's shards and examples."""

    num_committed: int = 0
    num_overtaken: int = 0
    """Shards computed, or begun, that another worker committed first."""
    num_non_finite: int = 0
    """Examples for which the teacher produced NaN or Inf."""
    failed: dict[int, str] = field(default_factory=dict)
    """Shards that failed, with the error of each."""


class Worker:
    """Computes one shard while it encodes and writes the previous one; holds at most two.

    A context manager: entering loads the teacher, leaving finishes the shard that is being written.

    Raises:
        UsageError: the teacher does not load.
    """

    def __init__(
        self, config: PrecomputeConfig, job: Job, writer: StoreWriter, info: WorkerInfo
    ) -> None:
        self.config, self.job, self.writer, self.info = config, job, writer, info
        self.targets = targets_of(writer.spec)
        self.budget = TokenBudget(config.token_budget, fixed=config.deterministic)
        self.stats = WorkerStats()
        self._open = ExitStack()

    def __enter__(self) -> "Worker":
        with ExitStack() as opened:
            self.teacher = self.job.source.load(self.writer.spec, gpu=self.info.gpu)
            opened.callback(self.teacher.close)
            facts = environment_facts(self.config, self.info, self.teacher)
            opened.enter_context(attempt_record(self.writer, facts, self.stats))
            self._write_behind = opened.enter_context(background_writer())
            self._open = opened.pop_all()
        return self

    def __exit__(self, *failure: Any) -> None:
        self._open.__exit__(*failure)

    def fill(self, shard: int, report: Report) -> bool:
        """Compute a shard; wait for its last batches, and write it, in the background.

        Args:
            shard: a shard that is not committed.
            report: called with the number of rows after each batch; with a negative number when
                rows are dropped.

        Returns:
            False when another worker committed the shard first; the computed rows are dropped.

        Raises:
            ShardFailedError: the shard cannot be computed; the worker can go on with another.
            StoreWriteError: the previous shard could not be written.
            IdentityError: another model answers behind a URL.
            LostTeacherError: a process that runs the teacher ended.
            TeacherError: up to the previous shard, NaN or Inf in more examples than
                `max_non_finite` accepts.
        """
        try:
            work = self.writer.shard(shard)
            rows = self.targets.filler(self.writer.spec.shard_rows)
            finish = self._start(work, rows, commit_record.shard_unit(shard), report)
        except (IdentityError, LostTeacherError):
            raise  # no other shard would be this teacher's, or could be computed
        except Exception as error:
            raise ShardFailedError(shard, error) from error
        if finish is None:
            self.stats.num_overtaken += 1
            return False
        self._write_behind(partial(self._commit, work, rows, finish))
        return True

    def _start(
        self, work: ShardWork, rows: Fields, unit: str, report: Report
    ) -> Callable[[], list[int]] | None:
        """Run `start_shard`; end early and return None when another worker commits the unit.

        The files of that commit are then at their final names. A unit that is committed without
        its files is computed, to restore them.
        """
        done = 0

        def after_batch(num_rows: int) -> None:
            nonlocal done
            done += num_rows
            report(num_rows)
            if self.writer.is_complete(unit):
                raise _OvertakenError

        try:
            return start_shard(work, self.teacher, rows, self.budget, after_batch)
        except _OvertakenError:
            report(-done)
            return None
        except Exception:
            report(-done)
            raise

    def _commit(self, work: ShardWork, rows: Fields, finish: Callable[[], list[int]]) -> None:
        non_finite = finish()
        self.stats.num_non_finite += len(non_finite)
        check_non_finite(
            self.stats.num_non_finite, self.writer.spec.num_examples, self.config.max_non_finite
        )
        counts = self.targets.counts(rows, self.writer.spec)
        if self.writer.commit(work, rows, non_finite, counts):
            self.stats.num_committed += 1
        else:
            self.stats.num_overtaken += 1


class ShardFailedError(Exception):
    """A shard could not be computed; `__cause__` is the error."""

    def __init__(self, shard: int, error: Exception) -> None:
        self.shard, self.reason = shard, type_and_message(error)
        super().__init__(self.reason)


def print_failure(failure: ShardFailedError) -> None:
    """Print the failed shard and its error; with a traceback unless a user can fix the error."""
    if not isinstance(failure.__cause__, CaskdError):
        traceback.print_exception(failure.__cause__)
    tell(
        f"shard {failure.shard} failed ({failure.reason}); continuing with the others",
        file=sys.stderr,
    )


def type_and_message(error: BaseException) -> str:
    """Type and message of an exception on one line."""
    return f"{type(error).__name__}: {reason(error, 300)}"


class _OvertakenError(Exception):
    """Another worker has committed the unit that this one computes."""


@contextmanager
def background_writer() -> Iterator[Callable[[Callable[[], Any]], None]]:
    """A background thread that runs one task at a time.

    An error of a task is raised by the next call, or at the end. An interrupt from outside lets the
    current task finish: its rows are already computed.
    """
    running: Future[Any] | None = None

    def submit(task: Callable[[], Any]) -> None:
        nonlocal running
        if running is not None:
            running.result()
        running = pool.submit(task)

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="caskd-write") as pool:
        yield submit
        if running is not None:
            running.result()


def environment_facts(
    config: PrecomputeConfig, info: WorkerInfo, teacher: Teacher
) -> dict[str, Any]:
    """Environment of an attempt, in JSON types; without host, user or path."""
    described = teacher.describe()
    own = {package: version(package) for package in ("numpy", "zarr", "numcodecs")}
    return {
        "python": platform.python_version(),
        "packages": {"caskd": version("caskd"), **described["packages"], **own},
        "executor": config.executor,
        "worker": info.rank,
        "num_workers": info.world_size,
        "tensor_parallel": config.tensor_parallel,
        "device": described["device"],
        "num_threads": described["num_threads"],
        "num_cores": os.cpu_count(),
        "token_budget": config.token_budget,
        "deterministic": config.deterministic,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


@contextmanager
def attempt_record(
    writer: StoreWriter, facts: dict[str, Any], stats: WorkerStats
) -> Iterator[None]:
    """Record an attempt under environment/, from its start, so that a killed one leaves it too."""
    name, begin = uuid.uuid4().hex[:16], time.monotonic()
    writer.record_environment({**facts, "outcome": "started"}, name)
    outcome = "failed"
    try:
        yield
        outcome = "done"
    except KeyboardInterrupt:
        outcome = "stopped"
        raise
    finally:
        result = {
            "outcome": outcome,
            "seconds": round(time.monotonic() - begin, 3),
            "num_shards": stats.num_committed,
            "num_shards_overtaken": stats.num_overtaken,
            # Only the type of the error: its message may contain a path.
            "failed_shards": {
                str(shard): error.split(":")[0] for shard, error in stats.failed.items()
            },
        }
        writer.record_environment({**facts, **result}, name)
