"""One-line errors for running out of memory and for a lost rank."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from caskd.store.errors import CaskdError
from caskd.train.run.memory_forecast import remedies, size_of
from caskd.train.run.plan import RunPlan


class OutOfMemoryError(CaskdError):
    """The device or the host ran out of memory."""

    exit_code = 1


class RankLostError(CaskdError):
    """Another rank died or did not respond in time."""

    exit_code = 1


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
