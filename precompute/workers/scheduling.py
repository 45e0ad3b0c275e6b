"""Which worker a process is, and which shard it computes next: no clock, no lock, no message."""

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
class WorkerInfo:
    """This worker's rank among the workers of a job, and its GPU."""

    rank: int = 0
    world_size: int = 1
    gpu: int | None = None
    """Index of its GPU on this machine (torchrun); None leaves the choice to torch."""

    @property
    def plans(self) -> bool:
        """Whether it may plan: the only worker, or rank 0 under torchrun."""
        return self.world_size == 1 or (self.gpu is not None and self.rank == 0)

    @property
    def waits_for_plan(self) -> bool:
        """Whether another worker, started together with it, plans."""
        return self.gpu is not None and self.rank > 0

    @property
    def prints(self) -> bool:
        """Whether it prints progress; of the workers that share a terminal, rank 0 does."""
        return not self.waits_for_plan


def worker_info(config: PrecomputeConfig, environ: Mapping[str, str]) -> WorkerInfo:
    """Resolve which worker this process is, from its flags and torchrun's environment variables.

    Raises:
        UsageError: the flags, or flags and launcher, contradict each other.
    """
    launched = all(name in environ for name in _TORCHRUN)
    many = launched and environ["WORLD_SIZE"] != "1"
    if config.num_workers < 1:
        raise UsageError(
            f"--num-workers {config.num_workers}: expected 1 or more; pass another number"
        )
    if config.backend == "vllm" and many:
        raise UsageError(
            f"--backend vllm: torchrun started {environ['WORLD_SIZE']} processes; expected one, "
            "which starts the engine's own; run caskd precompute without torchrun"
        )
    if config.executor != "torchrun" and many and config.tensor_parallel == 1:
        raise UsageError(
            f"--executor {config.executor}: torchrun started {environ['WORLD_SIZE']} processes; "
            "expected one worker per process; add --executor torchrun, or --tensor-parallel "
            f"{environ['WORLD_SIZE']} for one worker of all of them"
        )
    if config.executor != "local":
        _check_device_flags(config)
    if config.executor == "torchrun":
        return _torchrun_worker(config, environ, launched)
    if config.executor == "ray":
        if config.worker is not None:
            raise UsageError(
                f"--worker {config.worker}: --executor ray numbers the workers itself; expected no "
                "--worker; omit it"
            )
        return WorkerInfo()
    return _numbered_worker(config)


def _check_device_flags(config: PrecomputeConfig) -> None:
    """Refuse flags that select GPUs: the executor assigns one GPU to each worker."""
    if config.device.startswith("cuda:") or config.device_map is not None:
        flag = "--device" if config.device.startswith("cuda:") else "--device-map"
        raise UsageError(
            f"{flag}: --executor {config.executor} assigns a GPU to each worker; expected no "
            f"{flag}; omit {flag}, or start the workers with --worker and --num-workers"
        )


def _torchrun_worker(
    config: PrecomputeConfig, environ: Mapping[str, str], launched: bool
) -> WorkerInfo:
    if not launched:
        raise UsageError(
            "--executor torchrun: torchrun did not start this process; expected one process per "
            "GPU from torchrun; run torchrun --nproc-per-node GPUS -m caskd.cli precompute ... "
            "--executor torchrun"
        )
    if config.worker is not None or config.num_workers != 1:
        raise UsageError(
            "--worker or --num-workers: torchrun numbers the workers itself; expected neither; "
            "omit both"
        )
    rank, world_size, gpu = (int(environ[name]) for name in _TORCHRUN)
    return WorkerInfo(rank, world_size, gpu)


def _numbered_worker(config: PrecomputeConfig) -> WorkerInfo:
    world_size, rank = config.num_workers, config.worker
    if rank is None and world_size > 1:
        raise UsageError(
            f"--num-workers {world_size}: was given without --worker; expected the number of this "
            f"process; add --worker 0 (to {world_size - 1}), or --executor ray to start them all"
        )
    if rank is not None and not 0 <= rank < world_size:
        raise UsageError(
            f"--worker {rank} with --num-workers {world_size}: expected 0 to {world_size - 1}; "
            "pass another number"
        )
    return WorkerInfo(rank or 0, world_size)


def next_shard(pending: Sequence[int], rank: int, world_size: int) -> int:
    """Choose the shard that a worker computes next.

    Shards congruent to its rank modulo `world_size` come first. Then it helps with the rest, from
    the middle of its 1/world_size of the list. A slow worker computes its shards from the front, so
    helpers meet neither it nor each other while several shards per worker remain.

    Args:
        pending: shards that are neither committed nor taken by this worker, ascending; not empty.
        rank: the worker's.
        world_size: number of workers.
    """
    own = (shard for shard in pending if shard % world_size == rank)
    return next(own, pending[(2 * rank + 1) * len(pending) // (2 * world_size)])


class PendingShards:
    """The shards of a store that one worker may still take."""

    def __init__(self, writer: StoreWriter) -> None:
        self.root, self.spec = writer.root, writer.spec
        index = TeacherStore(StoreArrays(writer.root, writer.spec)).index
        rows = np.zeros(self.spec.num_shards, dtype=np.int64)
        inside = index.row_count > 0
        shard_of = index.row_start[inside] // self.spec.shard_rows
        np.add.at(rows, shard_of, index.row_count[inside])
        self.rows_of: list[int] = rows.tolist()
        """Rows of each shard of the store, without the filler."""
        self.shards = writer.missing_shards()
        """Shards neither committed (when last read) nor taken; ascending."""

    @property
    def rows_done(self) -> int:
        """Rows of all shards that are not pending."""
        return self.spec.num_rows - sum(self.rows_of[shard] for shard in self.shards)

    def refresh(self) -> int:
        """Drop shards that other workers committed meanwhile; returns their number of rows."""
        committed = commit_record.committed_units(self.root)
        gone = {shard for shard in self.shards if commit_record.shard_unit(shard) in committed}
        self.shards = [shard for shard in self.shards if shard not in gone]
        return sum(self.rows_of[shard] for shard in gone)

    def take(self, rank: int = 0, world_size: int = 1) -> int:
        """Take the next shard for a worker."""
        shard = next_shard(self.shards, rank, world_size)
        self.shards.remove(shard)
        return shard

    def put_back(self, shards: Sequence[int]) -> None:
        """Make taken shards pending again."""
        self.shards = sorted({*self.shards, *shards})
