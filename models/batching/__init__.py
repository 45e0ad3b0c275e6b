"""Examples of unequal length in one batch: layouts, lengths that change a model, and positions."""

from caskd.models.batching.layouts import (
    Arrange,
    Batch,
    Tokens,
    longest_first,
    num_in_batch,
    pack,
    pad,
    padded_batches,
)
from caskd.models.batching.length_borders import LengthBorders, forget_lengths, length_borders
from caskd.models.batching.padded_positions import one_sequence_a_line

__all__ = [
    "Arrange",
    "Batch",
    "LengthBorders",
    "Tokens",
    "forget_lengths",
    "length_borders",
    "longest_first",
    "num_in_batch",
    "one_sequence_a_line",
    "pack",
    "pad",
    "padded_batches",
]
