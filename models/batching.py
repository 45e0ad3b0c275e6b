"""Examples of unequal length as one input of the teacher: padded to the longest, or end to end.

Legend: B examples of a batch, L longest of them, T tokens of all of them.

Padding stands on the right, where causal attention cannot see it, so that no mask is needed: with
one, sdpa would leave its fast kernels. End to end, positions start again with each example, which
flash attention takes for the borders (transformers derives its `cu_seqlens` from them). Other
implementations would build a [T, T] mask instead and be slower than with padding.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]


def longest_first(lengths: Ids) -> Ids:
    """Positions [E] of the examples by length, longest first; equal lengths stay in order.

    Batches then carry little padding, and running out of memory shows at the first one.
    """
    return np.argsort(-lengths.astype(np.int64), kind="stable")


def num_in_batch(longest: int, token_budget: int) -> int:
    """Examples of one batch whose longest has that many tokens: what fits once padded, or one."""
    return max(1, token_budget // longest)


def padded_batches(lengths: Ids, token_budget: int) -> Iterator[Ids]:
    """Positions of the examples of each batch, longest first, within the budget once padded."""
    waiting = longest_first(lengths)
    while len(waiting):
        count = num_in_batch(int(lengths[waiting[0]]), token_budget)
        yield waiting[:count]
        waiting = waiting[count:]


@dataclass(frozen=True)
class Batch:
    """Input of the teacher: `input_ids` and `position_ids`, [B, L] or [1, T].

    `starts` [B] are the places of the examples' first tokens in the flattened input.
    """

    input_ids: Ids
    position_ids: Ids
    starts: Ids


Tokens = npt.NDArray[np.uint32]
Arrange = Callable[[Sequence[Tokens]], Batch]


def pad(sequences: Sequence[Tokens]) -> Batch:
    """[B, L]: one line for each sequence."""
    longest = max(map(len, sequences))
    input_ids = np.empty((len(sequences), longest), dtype=np.int64)
    for line, tokens in zip(input_ids, sequences, strict=True):
        line[: len(tokens)] = tokens
        # Padding must be finite even behind the mask (0 x NaN is NaN): a token of its own is.
        line[len(tokens) :] = tokens[0]
    positions = np.tile(np.arange(longest), (len(sequences), 1))
    return Batch(input_ids, positions, np.arange(len(sequences)) * longest)


def pack(sequences: Sequence[Tokens]) -> Batch:
    """[1, T]: all sequences in one line, none of it wasted."""
    lengths = [len(tokens) for tokens in sequences]
    positions = np.concatenate([np.arange(length) for length in lengths])
    input_ids = np.concatenate(sequences).astype(np.int64)
    return Batch(input_ids[None], positions[None], np.cumsum([0, *lengths[:-1]]))
