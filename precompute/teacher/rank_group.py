"""The processes that run one teacher together: rank 0 decides what to compute, the others follow.

Each message of rank 0 is a header of two numbers, a kind and a size, and then so many bytes.
Legend: E examples of a batch, T tokens of all of them.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise

import numpy as np
import torch
import torch.distributed as dist

from caskd.precompute.config import PrecomputeConfig
from caskd.store.errors import LostTeacherError, UsageError, reason
from caskd.store.write import ShardExample

END, PLAN, BATCH = 0, 1, 2
_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
_PATIENCE = timedelta(days=1)
"""The others wait while rank 0 tokenises a corpus. A rank that dies is noticed at once."""
_COMMAND = "torchrun --nproc-per-node {n} -m caskd.cli precompute ... --tensor-parallel {n}"


@dataclass
class RankGroup:
    """This process among the ranks of one worker."""

    rank: int
    size: int
    local_rank: int
    in_step: bool = False
    """Whether the ranks compute a batch, so that no message can be sent."""

    def send(self, kind: int, payload: bytes = b"") -> None:
        """Send a message to all other ranks."""
        dist.broadcast(torch.tensor([kind, len(payload)]), src=0)
        if payload:
            dist.broadcast(torch.frombuffer(bytearray(payload), dtype=torch.uint8), src=0)

    def receive(self) -> tuple[int, bytes]:
        """Wait for the next message of rank 0.

        Raises:
            LostTeacherError: rank 0 ended.
        """
        header = torch.zeros(2, dtype=torch.int64)
        try:
            dist.broadcast(header, src=0)
            payload = torch.empty(int(header[1]), dtype=torch.uint8)
            if len(payload):
                dist.broadcast(payload, src=0)
        except RuntimeError as error:  # gloo's, when a connection closes
            raise self.lost(error) from error
        return int(header[0]), payload.numpy().tobytes()

    def lost(self, error: BaseException) -> LostTeacherError:
        """The error of a rank that cannot go on."""
        return LostTeacherError(
            f"--tensor-parallel {self.size}: rank {self.rank} stopped, because it or another rank "
            f"failed ({type(error).__name__}: {reason(error)}); committed shards are kept; run the "
            "same command again to go on; where memory ran out, with a smaller --token-budget"
        )


_current: ContextVar[RankGroup | None] = ContextVar("rank_group", default=None)


def current_group() -> RankGroup | None:
    """The group that this process is in; None for a teacher in one process."""
    return _current.get()


@contextmanager
def rank_group(config: PrecomputeConfig, environ: Mapping[str, str]) -> Iterator[RankGroup | None]:
    """Join the other ranks of this worker; None without `--tensor-parallel`.

    At the end rank 0 dismisses the others, also after an error.

    Raises:
        UsageError: torchrun did not start so many processes, or a flag contradicts.
    """
    if config.tensor_parallel < 2 or config.backend != "transformers":
        yield None
        return
    check_flags(config, environ)
    rank, size, local_rank = (int(environ[name]) for name in _VARIABLES)
    group = RankGroup(rank, size, local_rank)
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank)
    dist.init_process_group(timeout=_PATIENCE)
    token = _current.set(group)
    try:
        yield group
    finally:
        _current.reset(token)
        if not group.in_step:  # else the others wait inside a sum, and notice that this rank ended
            if rank == 0:
                group.send(END)
            dist.destroy_process_group()


def check_flags(config: PrecomputeConfig, environ: Mapping[str, str]) -> None:
    """Refuse flags and launchers that contradict `--tensor-parallel`.

    Raises:
        UsageError: names the flag and what to do.
    """
    size = config.tensor_parallel
    flag, command = f"--tensor-parallel {size}", _COMMAND.format(n=size)
    gpus = torch.cuda.device_count()
    refused = {
        f"--executor {config.executor}": (
            config.executor != "local", "all ranks are one worker; for several workers start "
            "torchrun once for each, with --worker and --num-workers",
        ),
        "--deterministic": (
            config.deterministic, "the order of the sums over ranks is not fixed",
        ),
        "--device-map": (config.device_map is not None, "each rank has one device"),
        "--adapter": (
            config.adapter is not None, "the adapter's layers are not divided; merge it into the "
            "teacher first",
        ),
        f"--device {config.device}": (
            config.device.startswith("cuda:") or (config.device == "cpu" and gpus > 0),
            "each rank takes the GPU of its number, or the CPU of a machine without GPUs",
        ),
    }  # fmt: skip
    for name, (given, why) in refused.items():
        if given:
            raise UsageError(f"{name} and {flag}: {why}; expected one of the two; omit {name}")
    if not all(name in environ for name in _VARIABLES):
        raise UsageError(
            f"{flag}: torchrun did not start this process; expected {size} processes; run {command}"
        )
    if int(environ["WORLD_SIZE"]) != size:
        raise UsageError(
            f"{flag}: torchrun started {environ['WORLD_SIZE']} processes; expected {size}, which "
            f"are one worker; run {command}, and once for each of several workers, with --worker "
            "and --num-workers"
        )
    if 0 < gpus <= int(environ["LOCAL_RANK"]):
        raise UsageError(
            f"{flag}: torchrun started a rank for GPU {environ['LOCAL_RANK']}, but this machine "
            f"has {gpus} GPUs; expected one rank per GPU; pass --nproc-per-node {gpus}, and "
            "--nnodes for several machines"
        )


def packed(examples: Sequence[ShardExample]) -> bytes:
    """The examples of a batch as bytes: E, then 4 numbers of each, tokens [T], is_response [T]."""
    numbers = [(e.index, e.row_start, e.row_count, len(e.token_ids)) for e in examples]
    parts = [
        np.array([len(examples)], np.int64),
        np.array(numbers, np.int64).reshape(-1),
        *(e.token_ids.astype(np.int64) for e in examples),
        *(e.is_response.astype(np.int64) for e in examples),
    ]
    return np.concatenate(parts).tobytes()


def unpacked(payload: bytes) -> list[ShardExample]:
    """The examples of `packed`."""
    values = np.frombuffer(payload, np.int64)
    count = int(values[0])
    numbers = values[1 : 1 + 4 * count].reshape(count, 4)
    tokens, is_response = np.split(values[1 + 4 * count :], 2)
    parts = [slice(*edges) for edges in pairwise([0, *np.cumsum(numbers[:, 3]).tolist()])]
    return [
        ShardExample(
            int(index), tokens[part].astype(np.uint32), is_response[part].astype(np.uint8),
            int(start), int(rows),
        )
        for (index, start, rows, _), part in zip(numbers, parts, strict=True)
    ]  # fmt: skip
