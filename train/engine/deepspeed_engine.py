"""A student under DeepSpeed. Workarounds for DeepSpeed 0.19 are commented where they stand.

`TrainEngine.optimizer_step` takes the micro-batches of a step and updates the weights.
"""

import contextlib
import io
import logging
import os
import socket
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

# Before the import: otherwise DeepSpeed guesses the accelerator and prints a warning.
import torch

from caskd.models import default_device

os.environ.setdefault("DS_ACCELERATOR", default_device().type)

import deepspeed
from deepspeed.utils import logger as deepspeed_logger
from torch import Tensor, nn

from caskd.store.io import tell
from caskd.train.config import OptimizerName
from caskd.train.data import MicroBatch
from caskd.train.engine.deepspeed_check import (
    CPU_ATTRIBUTES,
    MODULE_ATTRIBUTES,
    PARAMETER_ATTRIBUTES_OF_STAGE_3,
    check_attributes,
    engine_attributes,
)
from caskd.train.engine.device_transfer import on_device
from caskd.train.engine.engine_state import EngineState
from caskd.train.engine.optimizers import make_optimizer


@dataclass(frozen=True)
class Ranks:
    """This process's rank, the world size and its device."""

    rank: int
    world_size: int
    device: torch.device


@contextlib.contextmanager
def init_distributed(timeout_minutes: float = 30) -> Iterator[Ranks]:
    """Join the launcher's other ranks, or run as a single rank without a launcher.

    Args:
        timeout_minutes: how long a collective waits for the other ranks before it fails.
    """
    alone = {}
    if "RANK" not in os.environ:  # deepspeed.initialize would look for MPI
        alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
        alone["MASTER_PORT"] = str(_free_port())
    os.environ.update(alone)
    try:
        yield _connect(timedelta(minutes=timeout_minutes))
    finally:
        if torch.distributed.is_initialized():
            deepspeed.comm.destroy_process_group()  # torch's function would leave stale groups
        for name in alone:
            del os.environ[name]


def _connect(timeout: timedelta) -> Ranks:
    check_attributes(deepspeed, "deepspeed", MODULE_ATTRIBUTES, deepspeed.__version__)
    _quiet_logger(int(os.environ["RANK"]))
    on_gpu = default_device().type == "cuda"
    device = torch.device("cpu")
    if on_gpu:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    else:
        check_attributes(deepspeed, "deepspeed", CPU_ATTRIBUTES, deepspeed.__version__)
        # Otherwise DeepSpeed compiles its shared-memory collective at the first start, for minutes.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    with _silent_stdout():
        backend = "nccl" if on_gpu else "gloo"
        deepspeed.init_distributed(dist_backend=backend, verbose=False, timeout=timeout)
    # DeepSpeed makes more groups, with torch's default timeout of half an hour.
    deepspeed.comm.comm.cdb.new_group = partial(torch.distributed.new_group, timeout=timeout)
    torch.distributed.barrier()  # no rank writes before all have checked their options
    return Ranks(torch.distributed.get_rank(), torch.distributed.get_world_size(), device)


class TrainEngine:
    """A module under DeepSpeed, with our optimizer and no scheduler.

    Args:
        module: returns (loss, sums) from a `MicroBatch`.
        settings: DeepSpeed's configuration, from `deepspeed_settings`.
        ranks: this process.
        optimizer_name: adamw; or adafactor, at stage 0 only.
        weight_decay: of matrices; vectors are not decayed.
    """

    def __init__(
        self,
        module: nn.Module,
        settings: Mapping[str, Any],
        ranks: Ranks,
        *,
        optimizer_name: OptimizerName = "adamw",
        weight_decay: float,
    ) -> None:
        self.ranks = ranks
        self.stage = int(settings["zero_optimization"]["stage"])
        self._optimizer_name = optimizer_name
        optimizer = make_optimizer(
            optimizer_name,
            module,
            weight_decay=weight_decay,
            skip_non_finite=self.stage == 0 and not settings["bf16"]["enabled"],
        )
        # DeepSpeed casts buffers to bfloat16, too, but rotary frequencies must stay exact.
        buffers = {name: value.clone() for name, value in module.named_buffers()}
        with _silent_stdout():
            self._engine, *_ = deepspeed.initialize(
                model=module, optimizer=optimizer, config=dict(settings)
            )
        for name, value in self._engine.module.named_buffers():
            value.data = buffers[name].to(ranks.device)
        bfloat16 = bool(settings["bf16"]["enabled"])
        needed = engine_attributes(self.stage, bfloat16=bfloat16)
        check_attributes(self._engine, "DeepSpeedEngine", needed, deepspeed.__version__)
        if self.stage == 3:
            parameter, needed = next(module.parameters()), PARAMETER_ATTRIBUTES_OF_STAGE_3
            check_attributes(parameter, "Parameter", needed, deepspeed.__version__)
        if self.stage in (1, 2) and not bfloat16:
            # In float32 these stages would apply a step whose gradient is not finite.
            self._engine.optimizer.check_grad_overflow = True
        # Stage 0 in bfloat16 takes a step of zeros to make its state; Adam must not count it.
        optimizer.state.clear()
        self._engine.train()
        self._norm: float | None = None

    @property
    def module(self) -> Any:
        """The wrapped module."""
        return self._engine.module

    def optimizer_step(self, batches: Sequence[MicroBatch], loss_scale: float) -> Tensor:
        """The micro-steps of one optimizer step, each copied to the device during the one before.

        Returns:
            The sums [S] over this rank's micro-batches.
        """
        last = len(batches) - 1
        parts = [
            self.micro_step(batch, loss_scale, last=number == last)
            for number, batch in enumerate(on_device(batches, self.ranks.device))
        ]
        return torch.stack(parts).sum(0)

    def micro_step(self, batch: MicroBatch, loss_scale: float, *, last: bool) -> Tensor:
        """Forward and backward of `loss_scale` x the summed loss; the last one updates the weights.

        The caller passes `last`, because DeepSpeed's own count assumes equally many micro-steps in
        every step, and a token budget splits steps into unequal numbers.

        DeepSpeed averages gradients over ranks, and would also divide them by the number of
        micro-steps. The caller's scale is world_size / (rows of the whole step), and the second
        division is disabled. So the gradient is that of sum / rows, however the step is split.

        Returns:
            The sums [S] of this rank's micro-batch.
        """
        sums: Tensor
        self._engine.set_gradient_accumulation_boundary(last)
        loss, sums = self._engine(batch.to(self.ranks.device))
        # Multiply even by a scale of 1: DeepSpeed ignores scale_wrt_gas=False if the loss is the
        # module's own output.
        self._engine.backward(loss * loss_scale, scale_wrt_gas=False)
        if self.stage == 0 and last:
            grads = [p.grad for p in self.module.parameters() if p.grad is not None]
            self._norm = float(torch.nn.utils.get_total_norm(grads))
        self._engine.step()
        return sums

    @torch.no_grad()
    def evaluate(self, batch: MicroBatch) -> Tensor:
        """The module's output in evaluation mode, without a gradient."""
        self._engine.eval()
        output: Tensor = self._engine(batch.to(self.ranks.device))
        self._engine.train()
        return output

    def was_step_applied(self) -> bool:
        """Whether the last step updated the weights; False if its gradient was not finite."""
        return bool(self._engine.was_step_applied())

    def grad_norm(self) -> float:
        """2-norm of the last step's gradient over all ranks, before clipping."""
        if self.stage == 0 and self._norm is not None:
            return self._norm
        return float(self._engine.get_global_grad_norm())

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of the next step."""
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr

    def sum_over_ranks(self, values: Tensor) -> Tensor:
        """Element-wise sum over ranks, on CPU."""
        if self.ranks.world_size > 1:
            torch.distributed.all_reduce(values)
        return values.cpu()

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.ranks.world_size > 1:
            torch.distributed.barrier()

    @property
    def state(self) -> EngineState:
        """Weights and optimizer state as whole tensors."""
        return EngineState(
            self._engine,
            self.module.model,
            self.stage,
            self._optimizer_name,
            deepspeed.utils,
            deepspeed.zero.GatheredParameters,
        )

    def close(self) -> None:
        """Release DeepSpeed's memory and hooks."""
        self._engine.destroy()


def _quiet_logger(rank: int) -> None:
    """Log warnings of rank 0 only, and on stderr: stdout is for results."""
    # DeepSpeed calls collectives by names that torch 2.13 deprecates with a warning at each call.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.", FutureWarning)
    # DeepSpeed passes device_id to init_process_group, but not for a single rank, where NCCL then
    # warns that it uses the current device. That is the rank's.
    warnings.filterwarnings("ignore", r"barrier\(\): using the device under current context")
    deepspeed_logger.setLevel(logging.WARNING if rank == 0 else logging.ERROR)
    deepspeed_logger.handlers = [_StderrHandler()]


class _StderrHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        tell(f"deepspeed: {record.getMessage()}", file=sys.stderr)


@contextlib.contextmanager
def _silent_stdout() -> Iterator[None]:
    """DeepSpeed prints memory use and more, and has no option to turn it off."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
