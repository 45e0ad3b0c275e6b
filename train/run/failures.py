"""What ends a run from outside, said in one line: memory that is gone, a rank that is gone."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from caskd.store.errors import CaskdError
from caskd.train.run.memory_forecast import remedies, size_of
from caskd.train.run.plan import RunPlan


class OutOfMemoryError(CaskdError):
    """The device, or the host, has no memory left."""

    exit_code = 1


class RankLostError(CaskdError):
    """Another rank died, or did not answer in time."""

    exit_code = 1


@contextmanager
def explained(plan: RunPlan) -> Iterator[None]:
    """Turn a failure of memory or of another rank into one line that says what to type next.

    Raises:
        OutOfMemoryError: with the two settings that would save most.
        RankLostError: a collective failed or timed out.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if _is_out_of_memory(error):
            raise OutOfMemoryError(_memory_advice(plan)) from None
        if _is_lost_rank(error):
            raise RankLostError(
                f"another rank ended or did not answer within {plan.config.timeout_minutes:g} "
                "minutes; see its own messages. Then: the same command with --resume."
            ) from None
        raise


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return "can't allocate memory" in str(error)  # what torch says on a CPU


def _is_lost_rank(error: BaseException) -> bool:
    """Gloo raises plain RuntimeErrors that name its own source files."""
    return isinstance(error, torch.distributed.DistError) or "gloo" in str(error)


def _memory_advice(plan: RunPlan) -> str:
    config, halved = plan.config, None
    if config.token_budget is not None:
        halved = f"--token-budget {config.token_budget // 2}"
    elif config.micro_batch_size > 1:
        halved = f"--micro-batch-size {config.micro_batch_size // 2}"
    helpful = remedies(size_of(plan), halved)[:2]
    advice = " or ".join(helpful) if helpful else "a smaller --student"
    return f"out of memory. What would help most here: {advice}. Compare with --dry-run."
