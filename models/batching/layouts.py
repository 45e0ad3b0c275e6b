"""Examples of unequal length as the input of a model: padded to the longest, or packed end to end.

Legend: B examples of a batch, L longest of them, T tokens of all of them, E examples in all.

Padding is on the right, where causal attention cannot see it, so that no mask is needed: with a
mask, sdpa would not use its fast kernels. In a packed batch, positions start at 0 with each
example, and flash attention takes these starts for the borders (transformers derives its
`cu_seqlens` from them). Other implementations would build a [T, T] mask instead and be slower than
with padding.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]
Lengths = npt.NDArray[np.integer[Any]]


def longest_first(lengths: Lengths) -> Ids:
    """Indices [E] of the examples by length, longest first; equal lengths keep their order.

    Batches then need little padding, and the first batch is the one that runs out of memory.
    """
    return np.argsort(-lengths.astype(np.int64), kind="stable")


def num_in_batch(longest: int, token_budget: int) -> int:
    """Number of examples of `longest` tokens within the budget once padded; at least 1."""
    return max(1, token_budget // longest)


def padded_batches(lengths: Lengths, token_budget: int) -> Iterator[Ids]:
    """Indices of the examples of each batch, longest first, within the budget once padded."""
    waiting = longest_first(lengths)
    while len(waiting):
        count = num_in_batch(int(lengths[waiting[0]]), token_budget)
        yield waiting[:count]
        waiting = waiting[count:]


@dataclass(frozen=True)
class Batch:
    """Input of a model: `input_ids` [B, L] if padded or [1, T] if packed.

    `position_ids` are those of a packed batch. In a padded one the model counts itself: some, such
    as RoBERTa, begin at another number than 0. `starts` [B] are the positions of the examples'
    first tokens in the flattened input.
    """

    input_ids: Ids
    position_ids: Ids | None
    starts: Ids

    @property
    def is_padded(self) -> bool:
        """Whether every line holds one example."""
        return len(self.input_ids) == len(self.starts)


Tokens = npt.NDArray[np.uint32]
Arrange = Callable[[Sequence[Tokens]], Batch]


def pad(sequences: Sequence[Tokens]) -> Batch:
    """[B, L]: one line for each sequence."""
    longest = max(map(len, sequences))
    input_ids = np.empty((len(sequences), longest), dtype=np.int64)
    for line, tokens in zip(input_ids, sequences, strict=True):
        line[: len(tokens)] = tokens
        # Hidden states of padding must be finite even behind the mask (0 x NaN is NaN), so it
        # repeats a token of the sequence.
        line[len(tokens) :] = tokens[0]
    return Batch(input_ids, None, np.arange(len(sequences)) * longest)


def pack(sequences: Sequence[Tokens]) -> Batch:
    """[1, T]: all sequences in one line, without padding."""
    lengths = [len(tokens) for tokens in sequences]
    positions = np.concatenate([np.arange(length) for length in lengths])
    input_ids = np.concatenate(sequences).astype(np.int64)
    return Batch(input_ids[None], positions[None], np.cumsum([0, *lengths[:-1]]))
