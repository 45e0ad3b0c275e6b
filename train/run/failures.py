"""One-line errors on every rank: a refused start, no memory left, a lost rank."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import torch

from caskd.store.errors import CaskdError
from caskd.train.config import TrainConfig
from caskd.train.data import RowWeights
from caskd.train.engine import Ranks, init_distributed
from caskd.train.run.memory_forecast import remedies, size_of
from caskd.train.run.out_folder import held_by_first_rank
from caskd.train.run.plan import RunPlan, plan_run


class OutOfMemoryError(CaskdError):
    """The device or the host ran out of memory."""

    exit_code = 1


class RankLostError(CaskdError):
    """Another rank died or did not respond in time."""

    exit_code = 1


class RankRefusedError(CaskdError):
    """Another rank refused to start, and printed why."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@contextmanager
def planned_by_all_ranks(
    config: TrainConfig, row_weights: RowWeights | None = None
) -> Iterator[RunPlan]:
    """Plan the run, hold --out on rank 0 until the block ends, and tell all ranks of a refusal.

    The block must call `agree` once, after the ranks are connected.

    Raises:
        CaskdError: an option is wrong, or another process holds --out.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(held_by_first_rank(config.out, resume=config.resume))
            plan = plan_run(config, row_weights)
        except CaskdError as error:
            if int(os.environ.get("WORLD_SIZE", "1")) > 1:
                # Ranks that had nothing to refuse wait for this one.
                with suppress(RuntimeError), init_distributed(config.timeout_minutes) as ranks:
                    _codes_and_steps(ranks, error.exit_code, 0)
            raise
        yield plan


def agree(ranks: Ranks, plan: RunPlan) -> None:
    """Stop on every rank if one refused to start, or would resume from another step.

    Raises:
        RankRefusedError: another rank refused; with its exit code.
        RankLostError: the ranks see different checkpoints.
    """
    both = _codes_and_steps(ranks, 0, plan.first_step)
    for rank, (code, _) in enumerate(both):
        if code:
            raise RankRefusedError(
                f"rank {ranks.rank} stopped, because rank {rank} refused to start; see the message "
                f"of rank {rank}",
                code,
            )
    steps = sorted({step for _, step in both})
    if len(steps) > 1:
        raise RankLostError(
            f"--out {plan.config.out}: ranks found checkpoints of different steps "
            f"({', '.join(map(str, steps))}), expected the same one: --out must be a directory "
            "that all machines share; run the same command again"
        )


def _codes_and_steps(ranks: Ranks, code: int, step: int) -> list[list[int]]:
    """The exit code (0: none) and the first step of every rank."""
    mine = torch.tensor([code, step], device=ranks.device)
    gathered = [torch.empty_like(mine) for _ in range(ranks.world_size)]
    torch.distributed.all_gather(gathered, mine)
    return [values.tolist() for values in gathered]


@contextmanager
def user_errors(plan: RunPlan) -> Iterator[None]:
    """Turn running out of memory or losing a rank into a one-line error with the next command.

    Raises:
        OutOfMemoryError: out of memory; it names the two settings that would save the most.
        RankLostError: a collective failed or timed out.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if _is_out_of_memory(error):
            raise OutOfMemoryError(_memory_advice(plan)) from None
        if _is_lost_rank(error):
            raise RankLostError(
                "another rank ended or did not respond within --timeout-minutes "
                f"{plan.config.timeout_minutes:g}; read its messages, then run the same command "
                "with --resume"
            ) from None
        raise


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return "can't allocate memory" in str(error)  # torch's message on a CPU


def _is_lost_rank(error: BaseException) -> bool:
    """Gloo raises plain RuntimeErrors whose text names its source files."""
    return isinstance(error, torch.distributed.DistError) or "gloo" in str(error)


def _memory_advice(plan: RunPlan) -> str:
    config, halved = plan.config, None
    if config.token_budget is not None:
        halved = f"--token-budget {config.token_budget // 2}"
    elif config.micro_batch_size > 1:
        halved = f"--micro-batch-size {config.micro_batch_size // 2}"
    helpful = remedies(size_of(plan), halved)[:2]
    advice = " or ".join(helpful) if helpful else "a smaller --student"
    return f"out of memory; pass {advice}, which would save the most; --dry-run shows the forecast"
