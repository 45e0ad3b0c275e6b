"""A worker: a loaded teacher that fills the shards it is told to, in whatever process it lives.

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

import torch

from caskd.precompute.config import PrecomputeConfig
from caskd.precompute.planning import Job, check_non_finite
from caskd.precompute.rows import Fields, targets_of
from caskd.precompute.teacher import TransformersTeacher, fixed_kernels
from caskd.precompute.workers.fill import TokenBudget, fill_shard
from caskd.precompute.workers.scheduling import Seat
from caskd.store.commits import commit_record
from caskd.store.errors import CaskdError, UsageError
from caskd.store.io import progress
from caskd.store.write import ShardWork, StoreWriter

Report = Callable[[int], None]


@dataclass
class Tally:
    """What came of the shards that a worker took."""

    num_committed: int = 0
    num_overtaken: int = 0
    """Computed, or begun, and committed by another worker first."""
    num_non_finite: int = 0
    """Examples for which the teacher gave NaN or Inf."""
    failed: dict[int, str] = field(default_factory=dict)
    """Shards that could not be computed, and why."""


class Worker:
    """Computes one shard while the one before is encoded and written; two are held at most.

    A context: entering loads the teacher, leaving finishes the shard that is being written.

    Raises:
        UsageError: the teacher does not load.
    """

    def __init__(self, config: PrecomputeConfig, job: Job, writer: StoreWriter, seat: Seat) -> None:
        self.config, self.job, self.writer, self.seat = config, job, writer, seat
        self.budget = TokenBudget(config.token_budget, fixed=config.deterministic)
        self.tally = Tally()
        self._open = ExitStack()

    def __enter__(self) -> "Worker":
        with ExitStack() as opened:
            opened.enter_context(fixed_kernels(self.config.deterministic))
            self.teacher = load_teacher(self.config, self.job, self.writer, self.seat)
            facts = _environment(self.config, self.seat, self.teacher.device)
            opened.enter_context(recorded(self.writer, facts, self.tally))
            self._behind = opened.enter_context(one_behind())
            self._open = opened.pop_all()
        return self

    def __exit__(self, *failure: Any) -> None:
        self._open.__exit__(*failure)

    def run_pilot(self, *, quiet: bool = False) -> None:
        """Let the encoding see a few rows first, where it wants to know which ids are frequent.

        Workers that start together all do; whoever is first decides, and the others drop theirs.
        """
        work = self.writer.pilot()
        if work is None:
            return
        rows = self.teacher.rule.filler(work.num_rows)
        with progress("pilot", work.num_rows, "rows", quiet=quiet) as bar:
            if self._fill(work, rows, commit_record.PILOT, bar.advance) is not None:
                self.writer.commit_pilot(rows)

    def fill(self, shard: int, report: Report) -> bool:
        """Compute a shard and have it written in the background.

        Args:
            shard: one that is not committed yet.
            report: told the number of rows after each batch; negative when they count no more.

        Returns:
            False when another worker committed it first, and what was computed is dropped.

        Raises:
            ShardFailedError: it cannot be computed; the worker can go on with another.
            StoreWriteError: the shard before it could not be written.
            TeacherError: NaN or Inf in more examples than are accepted.
        """
        try:
            work = self.writer.shard(shard)
            rows = self.teacher.rule.filler(self.writer.spec.shard_rows)
            non_finite = self._fill(work, rows, commit_record.shard_unit(shard), report)
        except Exception as error:
            raise ShardFailedError(shard, error) from error
        if non_finite is None:
            self.tally.num_overtaken += 1
            return False
        self.tally.num_non_finite += len(non_finite)
        check_non_finite(
            self.tally.num_non_finite, self.writer.spec.num_examples, self.config.max_non_finite
        )
        self._behind(partial(self._commit, work, rows, non_finite))
        return True

    def _fill(self, work: ShardWork, rows: Fields, unit: str, report: Report) -> list[int] | None:
        """`fill_shard`, ended early (None) when another worker commits the unit."""
        done = 0

        def after_batch(num_rows: int) -> None:
            nonlocal done
            done += num_rows
            report(num_rows)
            if commit_record.is_committed(self.writer.root, unit):
                raise _OvertakenError

        try:
            return fill_shard(work, self.teacher, rows, self.budget, after_batch)
        except _OvertakenError:
            report(-done)
            return None
        except Exception:
            report(-done)
            raise

    def _commit(self, work: ShardWork, rows: Fields, non_finite: list[int]) -> None:
        if self.writer.commit(work, rows, non_finite):
            self.tally.num_committed += 1
        else:
            self.tally.num_overtaken += 1


class ShardFailedError(Exception):
    """A shard that cannot be computed; the cause says why."""

    def __init__(self, shard: int, error: Exception) -> None:
        self.shard, self.reason = shard, one_line(error)
        super().__init__(self.reason)


def print_failure(failure: ShardFailedError) -> None:
    """Say what failed; and where, if it is nobody's mistake but ours or the machine's."""
    if not isinstance(failure.__cause__, CaskdError):
        traceback.print_exception(failure.__cause__)
    print(f"shard {failure.shard} failed ({failure.reason}); on with the others", file=sys.stderr)


def one_line(error: BaseException) -> str:
    """An exception's kind and message."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


class _OvertakenError(Exception):
    """Another worker has committed what is being computed."""


@contextmanager
def one_behind() -> Iterator[Callable[[Callable[[], Any]], None]]:
    """A background thread for one task at a time: what it raises, the next call or the end raises.

    Interrupted from outside, it still finishes the task in hand: those rows are computed.
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


def load_teacher(
    config: PrecomputeConfig, job: Job, writer: StoreWriter, seat: Seat
) -> TransformersTeacher:
    """The teacher, on this worker's GPU where there are any."""
    num_gpus = 0 if config.device == "cpu" else torch.cuda.device_count()
    if seat.gpu is not None and num_gpus:
        if seat.gpu >= num_gpus:
            raise UsageError(
                f"torchrun started a worker for GPU {seat.gpu} but there are {num_gpus}; "
                f"expected one worker a GPU: --nproc-per-node {num_gpus}"
            )
        torch.cuda.set_device(seat.gpu)
    return TransformersTeacher(
        job.source,
        vocab_size=writer.spec.vocab_size,
        rule=targets_of(writer.spec),
        device=config.device,
    )


def _environment(config: PrecomputeConfig, seat: Seat, device: torch.device) -> dict[str, Any]:
    """What surrounds an attempt; no host, user or path."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    packages = ("caskd", "torch", "transformers", "tokenizers", "numpy", "zarr", "numcodecs")
    return {
        "python": platform.python_version(),
        "packages": {package: version(package) for package in packages},
        "executor": config.executor,
        "worker": seat.index,
        "num_workers": seat.count,
        "device": f"{device.type} {name}",
        "num_threads": torch.get_num_threads(),
        "num_cores": os.cpu_count(),
        "token_budget": config.token_budget,
        "deterministic": config.deterministic,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


@contextmanager
def recorded(writer: StoreWriter, facts: dict[str, Any], tally: Tally) -> Iterator[None]:
    """Keep a record of an attempt: from its start, so that one that is killed leaves it too."""
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
            "num_shards": tally.num_committed,
            "num_shards_overtaken": tally.num_overtaken,
            # The kind alone: a message may hold a path.
            "failed_shards": {
                str(shard): reason.split(":")[0] for shard, reason in tally.failed.items()
            },
        }
        writer.record_environment({**facts, **result}, name)
