"""Who takes which shard: decided from what is committed, without clock, lock or message."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from caskd.precompute.config import PrecomputeConfig
from caskd.store.commits import commit_record
from caskd.store.errors import UsageError
from caskd.store.read import StoreArrays, TeacherStore
from caskd.store.write import StoreWriter

_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK")


@dataclass(frozen=True)
class Seat:
    """Which of how many workers a process is."""

    index: int = 0
    count: int = 1
    gpu: int | None = None
    """Its GPU on this machine; None leaves the choice to torch."""

    @property
    def plans(self) -> bool:
        """Whether it may plan: alone, or first of those that torchrun started together."""
        return self.count == 1 or (self.gpu is not None and self.index == 0)

    @property
    def waits(self) -> bool:
        """Whether somebody who was started together with it plans."""
        return self.gpu is not None and self.index > 0

    @property
    def speaks(self) -> bool:
        """Whether it reports; of those that share a terminal, the first does."""
        return not self.waits


def seat_of(config: PrecomputeConfig, environ: Mapping[str, str]) -> Seat:
    """Which worker this process is, from its flags and what torchrun says.

    Raises:
        UsageError: the flags, or flags and launcher, contradict each other.
    """
    launched = all(name in environ for name in _TORCHRUN)
    many = launched and environ["WORLD_SIZE"] != "1"
    if config.num_workers < 1:
        raise UsageError(f"--num-workers is {config.num_workers}; expected 1 or more")
    if config.executor != "torchrun" and many:
        raise UsageError(
            f"torchrun started {environ['WORLD_SIZE']} processes but --executor is "
            f"{config.executor}; expected one worker for each: add --executor torchrun"
        )
    if config.executor != "local":
        _check_placement(config)
    if config.executor == "torchrun":
        return _torchrun_seat(config, environ, launched)
    if config.executor == "ray":
        if config.worker is not None:
            raise UsageError(
                f"--worker is {config.worker} but --executor ray numbers its workers itself; "
                "leave --worker out"
            )
        return Seat()
    return _numbered_seat(config)


def _check_placement(config: PrecomputeConfig) -> None:
    """An executor gives each of its workers a GPU; what names GPUs itself would share them."""
    if config.device.startswith("cuda:") or config.device_map is not None:
        flag = "--device" if config.device.startswith("cuda:") else "--device-map"
        raise UsageError(
            f"{flag} was given but --executor {config.executor} gives each worker a GPU of its "
            f"own; leave {flag} out, or start the workers with --worker and --num-workers"
        )


def _torchrun_seat(config: PrecomputeConfig, environ: Mapping[str, str], launched: bool) -> Seat:
    if not launched:
        raise UsageError(
            "--executor is torchrun but torchrun did not start this process; type "
            "torchrun --nproc-per-node GPUS -m caskd.cli precompute ... --executor torchrun"
        )
    if config.worker is not None or config.num_workers != 1:
        raise UsageError(
            "--worker or --num-workers was given but torchrun numbers the workers itself; "
            "leave them out"
        )
    index, count, gpu = (int(environ[name]) for name in _TORCHRUN)
    return Seat(index, count, gpu)


def _numbered_seat(config: PrecomputeConfig) -> Seat:
    count, worker = config.num_workers, config.worker
    if worker is None and count > 1:
        raise UsageError(
            f"--num-workers is {count} but --worker is not given; expected which of them this "
            f"process is: add --worker 0 (to {count - 1}), or --executor ray to start them all"
        )
    if worker is not None and not 0 <= worker < count:
        raise UsageError(
            f"--worker is {worker} of --num-workers {count}; expected 0 to {count - 1}"
        )
    return Seat(worker or 0, count)


def next_shard(left: Sequence[int], index: int, count: int) -> int:
    """The shard that worker `index` of `count` takes next.

    First those congruent to it. Then what is left, each worker from its own place of the list, the
    middle of its 1/count: what a slow or dead worker leaves lies in order, its own work at the
    front, so that helpers meet neither it nor each other while there are several shards apiece.

    Args:
        left: shards that are not committed and that it has not taken yet, ascending; not empty.
    """
    own = (shard for shard in left if shard % count == index)
    return next(own, left[(2 * index + 1) * len(left) // (2 * count)])


class Board:
    """The shards of a store as one worker sees them."""

    def __init__(self, writer: StoreWriter) -> None:
        self.root, self.spec = writer.root, writer.spec
        index = TeacherStore(StoreArrays(writer.root, writer.spec)).index
        rows = np.zeros(self.spec.num_shards, dtype=np.int64)
        inside = index.row_count > 0
        shards = index.row_start[inside] // self.spec.shard_rows
        np.add.at(rows, shards, index.row_count[inside])
        self.rows: list[int] = rows.tolist()
        """Rows of each shard, without the filler."""
        self.left = writer.missing_shards()
        """Neither committed when last looked at, nor taken; ascending."""

    @property
    def rows_done(self) -> int:
        """Rows of everything that is not left."""
        return self.spec.num_rows - sum(self.rows[shard] for shard in self.left)

    def refresh(self) -> int:
        """Forget what others committed meanwhile; returns how many rows that was."""
        committed = commit_record.committed_units(self.root)
        gone = {shard for shard in self.left if commit_record.shard_unit(shard) in committed}
        self.left = [shard for shard in self.left if shard not in gone]
        return sum(self.rows[shard] for shard in gone)

    def take(self, index: int = 0, count: int = 1) -> int:
        """Take the next shard for a worker."""
        shard = next_shard(self.left, index, count)
        self.left.remove(shard)
        return shard

    def put_back(self, shards: Sequence[int]) -> None:
        """Leave shards that were taken to others, or to later."""
        self.left = sorted({*self.left, *shards})
