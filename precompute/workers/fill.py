"""Fill one shard: compute every row exactly once, in batches that fit into memory.

Legend: R rows of a shard, k cells kept per row.
"""

import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caskd.models import longest_first, num_in_batch
from caskd.precompute.rows import Fields
from caskd.precompute.teacher import Teacher
from caskd.store.errors import UsageError
from caskd.store.io import counted, tell
from caskd.store.write import ShardExample, ShardWork

IN_FLIGHT = 2
"""Batches that a teacher has at a time: a GPU computes the next while the host waits for one."""


@dataclass
class TokenBudget:
    """Tokens of one forward pass; halved when memory runs out, unless batches are fixed."""

    tokens: int
    fixed: bool = False
    warned: bool = False

    def shrink(self, batch: Sequence[ShardExample], error: MemoryError) -> None:
        """Halve the budget after a batch that did not fit into memory.

        Raises:
            UsageError: the batch is a single example, or batches are fixed.
        """
        longest = len(batch[0].token_ids)
        problem = f"out of memory on {counted(len(batch), 'example')} of up to {longest:,} tokens"
        if self.fixed or len(batch) == 1:
            why = (
                "--deterministic fixes the batches"
                if self.fixed
                else "one example cannot be split further"
            )
            raise UsageError(
                f"{problem} ({error}), and {why}; expected a batch that fits; pass a smaller "
                "--token-budget, or a smaller --max-length with another --store"
            ) from error
        self.tokens = longest * len(batch) // 2
        if not self.warned:
            self.warned = True
            tell(
                f"warning: {problem}; continuing with smaller batches; next time pass "
                f"--token-budget {self.tokens}",
                file=sys.stderr,
            )


def fill_shard(
    work: ShardWork,
    teacher: Teacher,
    rows: Fields,
    budget: TokenBudget,
    report: Callable[[int], None],
) -> list[int]:
    """Compute every row of a shard exactly once.

    Args:
        work: the shard's examples.
        teacher: computes the rows of a batch.
        rows: arrays [R] and [R, k] that hold filler; computed rows replace it.
        budget: tokens of one forward pass.
        report: called with the number of rows after each batch.

    Returns:
        Indices of the examples for which the teacher produced NaN or Inf.
    """
    return start_shard(work, teacher, rows, budget, report)()


def start_shard(
    work: ShardWork,
    teacher: Teacher,
    rows: Fields,
    budget: TokenBudget,
    report: Callable[[int], None],
) -> Callable[[], list[int]]:
    """`fill_shard` in two parts, so that a GPU has the next shard's batches meanwhile.

    Returns:
        Waits for the last batches and places them; returns what `fill_shard` returns.
    """
    lengths = np.array([len(example.token_ids) for example in work.examples], np.int64)
    waiting = [work.examples[position] for position in longest_first(lengths)]
    running: deque[tuple[list[ShardExample], Mapping[str, NDArray[Any]]]] = deque()
    non_finite: list[int] = []
    while waiting:
        if len(running) == IN_FLIGHT:
            batch, fields = running.popleft()
            non_finite += _place(batch, fields, rows)
            report(sum(example.row_count for example in batch))
        batch = waiting[: num_in_batch(len(waiting[0].token_ids), budget.tokens)]
        try:
            running.append((batch, teacher.rows(batch)))
        except MemoryError as error:
            budget.shrink(batch, error)
        else:
            waiting = waiting[len(batch) :]
    report(sum(example.row_count for batch, _ in running for example in batch))

    def finish() -> list[int]:
        for batch, fields in running:
            non_finite.extend(_place(batch, fields, rows))
        return non_finite

    return finish


def _place(
    batch: Sequence[ShardExample], fields: Mapping[str, NDArray[Any]], rows: Fields
) -> list[int]:
    """Move a batch's rows to their places in the shard; indices of the non-finite examples."""
    done, non_finite = 0, []
    for example in batch:
        target = slice(example.row_start, example.row_start + example.row_count)
        for name, values in fields.items():
            rows[name][target] = values[done : done + example.row_count]
        done += example.row_count
        if not rows["num_kept"][target].all():
            non_finite.append(example.index)
    return non_finite
