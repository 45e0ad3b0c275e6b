"""Split the examples of a step into micro-batches: by number, or by a budget of tokens.

Legend: G examples of a step (the global batch). A part is what one rank takes in one micro-step.

The split is known before the forward and the same on all ranks. So all ranks run equally many
micro-steps and call the same collectives.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from caskd.models import longest_first
from caskd.store.errors import UsageError
from caskd.train.data.order import IntArray
from caskd.train.data.packing import row_starts

Counts = npt.NDArray[np.int32]


@dataclass(frozen=True, kw_only=True)
class MicroBatchSplit:
    """How to split a step.

    Attributes:
        world_size: number of ranks.
        micro_batch_size: examples of a part, if there is no budget.
        token_budget: largest number of tokens of a part, padding included.
        packed: whether examples share rows.
    """

    world_size: int
    micro_batch_size: int
    token_budget: int | None = None
    packed: bool = False

    def parts(self, examples: IntArray, token_counts: Counts) -> list[list[IntArray]]:
        """The examples of each micro-step and rank, out of the G of a step.

        Micro-batches of similar lengths carry little padding. The longest come first, so that
        running out of memory shows at the first micro-step.

        Args:
            examples: [G] of the step.
            token_counts: tokens of every example of the stores.
        """
        by_length = examples[longest_first(token_counts[examples].astype(np.int64))]
        if self.token_budget is None:
            pieces = np.split(
                by_length, range(self.micro_batch_size, len(by_length), self.micro_batch_size)
            )
        else:
            lengths = token_counts[by_length].tolist()
            ends = budget_ends(lengths, self.token_budget, packed=self.packed)
            pieces = even_pieces(np.split(by_length, ends[:-1]), self.world_size)
        return [
            pieces[first : first + self.world_size]
            for first in range(0, len(pieces), self.world_size)
        ]


def budget_ends(lengths: Sequence[int], token_budget: int, *, packed: bool) -> list[int]:
    """End of each part when examples of these lengths (descending) fill parts up to the budget."""
    ends: list[int] = []
    first = 0
    for index in range(1, len(lengths)):
        part = lengths[first : index + 1]
        num_rows = row_starts(part)[1] if packed else len(part)
        if num_rows * part[0] > token_budget:
            ends.append(index)
            first = index
    return [*ends, len(lengths)]


def even_pieces(pieces: list[IntArray], world_size: int) -> list[IntArray]:
    """Halve the pieces with the most examples until their number is a multiple of the ranks."""
    pieces = list(pieces)
    while len(pieces) % world_size:
        largest = max(range(len(pieces)), key=lambda index: len(pieces[index]))
        pieces[largest : largest + 1] = np.array_split(pieces[largest], 2)
    return pieces


def accumulation_steps(global_batch_size: int, micro_batch_size: int, world_size: int) -> int:
    """Micro-steps per optimizer step.

    Raises:
        UsageError: the global batch is no multiple of the examples per micro-step; the error names
            a size that is.
    """
    per_forward = micro_batch_size * world_size
    if global_batch_size % per_forward:
        nearest = -(-global_batch_size // per_forward) * per_forward
        raise UsageError(
            f"--global-batch-size {global_batch_size}: expected a multiple of "
            f"--micro-batch-size {micro_batch_size} x {world_size} ranks; "
            f"pass --global-batch-size {nearest}, or another --micro-batch-size"
        )
    return global_batch_size // per_forward


def check_budget(token_budget: int, global_batch_size: int, world_size: int, longest: int) -> None:
    """Refuse a budget with which some step could not be split.

    Raises:
        UsageError: the longest example exceeds it, or the batch is no multiple of the ranks.
    """
    if longest > token_budget:
        raise UsageError(
            f"--token-budget {token_budget}: the longest example has {longest} tokens; expected "
            f"at least as many; pass --token-budget {longest} or more"
        )
    if global_batch_size % world_size:
        nearest = -(-global_batch_size // world_size) * world_size
        raise UsageError(
            f"--global-batch-size {global_batch_size}: expected a multiple of {world_size} "
            f"ranks; pass --global-batch-size {nearest}"
        )
