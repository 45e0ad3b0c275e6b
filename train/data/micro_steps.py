"""How the examples of a step are cut into forwards: by number, or by a budget of tokens.

Legend: G examples of a step (the global batch), a part is what one rank takes in one micro-step.

All of it is known before the forward and the same on all ranks, so that they take equally many
micro-steps and ask for the same collectives.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from caskd.store.errors import UsageError
from caskd.train.data.order import IntArray
from caskd.train.data.packing import row_starts

Counts = npt.NDArray[np.int32]


@dataclass(frozen=True, kw_only=True)
class Cut:
    """The rule by which steps are cut.

    Attributes:
        world_size: ranks.
        micro_batch_size: examples of a part, where there is no budget.
        token_budget: most tokens of a part, padding included.
        packed: examples share rows.
    """

    world_size: int
    micro_batch_size: int
    token_budget: int | None = None
    packed: bool = False

    def parts(self, examples: IntArray, token_counts: Counts) -> list[list[IntArray]]:
        """The examples of each micro-step and rank, longest first, out of the G of a step.

        Args:
            examples: [G] of the step.
            token_counts: tokens of every example there is.
        """
        by_length = longest_first(examples, token_counts)
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


def longest_first(examples: IntArray, token_counts: Counts) -> IntArray:
    """The examples of a step by length, longest first: micro-batches then carry little padding, all
    ranks work on similar lengths, and running out of memory shows at the first micro-step."""
    return examples[np.argsort(-token_counts[examples].astype(np.int64), kind="stable")]


def budget_ends(lengths: Sequence[int], token_budget: int, *, packed: bool) -> list[int]:
    """Where each part ends, if examples of these lengths (descending) are filled into parts."""
    ends: list[int] = []
    first = 0
    for place in range(1, len(lengths)):
        part = lengths[first : place + 1]
        num_rows = row_starts(part)[1] if packed else len(part)
        if num_rows * part[0] > token_budget:
            ends.append(place)
            first = place
    return [*ends, len(lengths)]


def even_pieces(pieces: list[IntArray], world_size: int) -> list[IntArray]:
    """As many pieces as a multiple of the ranks, by halving those of most examples."""
    pieces = list(pieces)
    while len(pieces) % world_size:
        largest = max(range(len(pieces)), key=lambda place: len(pieces[place]))
        pieces[largest : largest + 1] = np.array_split(pieces[largest], 2)
    return pieces


def accumulation_steps(global_batch_size: int, micro_batch_size: int, world_size: int) -> int:
    """Micro-steps per optimizer step.

    Raises:
        UsageError: the global batch cannot be divided so; it names a size that can.
    """
    per_forward = micro_batch_size * world_size
    if global_batch_size % per_forward:
        nearest = -(-global_batch_size // per_forward) * per_forward
        raise UsageError(
            f"--global-batch-size is {global_batch_size}; expected a multiple of "
            f"--micro-batch-size {micro_batch_size} x {world_size} ranks. "
            f"Try --global-batch-size {nearest}, or another --micro-batch-size."
        )
    return global_batch_size // per_forward


def check_budget(token_budget: int, global_batch_size: int, world_size: int, longest: int) -> None:
    """Refuse a budget under which some step could not be cut.

    Raises:
        UsageError: an example is longer than it, or the batch is no multiple of the ranks.
    """
    if longest > token_budget:
        raise UsageError(
            f"--token-budget is {token_budget}, but the longest example has {longest} tokens. "
            f"Expected at least {longest}."
        )
    if global_batch_size % world_size:
        nearest = -(-global_batch_size // world_size) * world_size
        raise UsageError(
            f"--global-batch-size is {global_batch_size}; expected a multiple of {world_size} "
            f"ranks. Try --global-batch-size {nearest}."
        )
