"""One shard: every row computed exactly once, in batches that fit in memory.

Legend: R rows of a shard, k cells kept per row.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from caskd.precompute.rows import Fields
from caskd.precompute.teacher import Teacher
from caskd.store.errors import UsageError
from caskd.store.write import ShardExample, ShardWork


@dataclass
class TokenBudget:
    """Tokens of one forward pass; it shrinks when memory runs out, unless batches are fixed."""

    tokens: int
    fixed: bool = False
    told: bool = False

    def shrink(self, batch: Sequence[ShardExample], error: MemoryError) -> None:
        """Make room after a batch that was too large.

        Raises:
            UsageError: nothing is left to halve, or halving would change the bytes.
        """
        longest = len(batch[0].token_ids)
        if self.fixed or len(batch) == 1:
            what = "--deterministic fixes the batches" if self.fixed else "it is one example"
            raise UsageError(
                f"out of memory on {len(batch)} examples of up to {longest:,} tokens ({error}), "
                f"and {what}; type a smaller --token-budget or --max-length"
            ) from error
        self.tokens = longest * len(batch) // 2
        if not self.told:
            self.told = True
            print(
                f"out of memory on {len(batch)} examples of up to {longest:,} tokens; going on "
                f"with smaller batches (next time type --token-budget {self.tokens})",
                file=sys.stderr,
            )


def next_batch(waiting: Sequence[ShardExample], tokens: int) -> Sequence[ShardExample]:
    """The first examples of `waiting` (longest first) that fit in `tokens` once padded, or one."""
    return waiting[: max(1, tokens // len(waiting[0].token_ids))]


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
        teacher: answers batches.
        rows: arrays [R] and [R, k] of filler; rows are written where they belong.
        budget: tokens of one forward pass.
        report: told the number of rows after each batch.

    Returns:
        Indices of the examples for which the teacher gave NaN or Inf.
    """
    waiting: Sequence[ShardExample]
    waiting = sorted(work.examples, key=lambda example: (-len(example.token_ids), example.index))
    non_finite = []
    while waiting:
        batch = next_batch(waiting, budget.tokens)
        try:
            fields = teacher.rows(batch)
        except MemoryError as error:
            budget.shrink(batch, error)
            continue
        waiting, done = waiting[len(batch) :], 0
        for example in batch:
            target = slice(example.row_start, example.row_start + example.row_count)
            for name, values in fields.items():
                rows[name][target] = values[done : done + example.row_count]
            done += example.row_count
            if not rows["num_kept"][target].all():
                non_finite.append(example.index)
        report(done)
    return non_finite
