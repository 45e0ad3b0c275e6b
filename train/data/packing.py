"""Pack several examples into one row of a batch, and test whether a student keeps them apart.

Legend: B examples, R rows of a batch, T their length, H hidden width.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from caskd.models import SplitModel, length_borders
from caskd.train.data.order import IntArray

_TOLERANCE = 1e-4
_PROBE = ((7, 3), (5, 5))  # lengths of the examples in each row
_SECOND = 5  # tokens of the example behind a long one


def row_starts(lengths: Sequence[int]) -> tuple[list[int], int]:
    """Start of each example when examples are packed into rows as long as the longest.

    Each example goes into the first row with room for it. With lengths in descending order, few
    cells stay empty.

    Returns:
        starts [B] in the flattened batch, and R.
    """
    width = max(lengths)
    used: list[int] = []
    starts = []
    for length in lengths:
        row = next((r for r, size in enumerate(used) if size + length <= width), len(used))
        if row == len(used):
            used.append(0)
        starts.append(row * width + used[row])
        used[row] += length
    return starts, len(used)


def restarting_positions(starts: IntArray, lengths: IntArray, num_rows: int) -> IntArray:
    """Position ids [R, T] that restart at 0 with every example, and with the padding of a row.

    Without an attention mask, transformers finds the ends of examples in them
    (`masking_utils.find_packed_sequence_indices`).
    """
    size = num_rows * int(lengths.max())
    first = np.zeros(size, np.int64)
    # Behind an example starts the next one, or padding.
    ends = (starts + lengths)[starts + lengths < size]
    for begin in (np.arange(0, size, size // num_rows), starts, ends):
        first[begin] = begin
    return (np.arange(size) - np.maximum.accumulate(first)).reshape(num_rows, -1)


def keeps_examples_apart(model: Any, longest: int = 0) -> bool:
    """Whether packed examples have the same hidden states as each alone.

    Tested on a few tokens, and beyond each window that an example of `longest` tokens exceeds.
    Examples beyond a length where the whole forward pass changes are never packed.
    """
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return False
    borders = length_borders(model.config)
    if borders.num_whole(longest) or borders.exceeds_each(longest):
        return False
    windows = [edge for edge in borders.local if longest > edge]
    rows = [_PROBE, *(((min(edge + _SECOND, longest), _SECOND),) for edge in windows)]
    return all(_keeps_apart(model, lengths) for lengths in rows)


@torch.no_grad()
def _keeps_apart(model: Any, rows: Sequence[Sequence[int]]) -> bool:
    """The test, with examples of these lengths in each row; all rows are equally long."""
    split, training = SplitModel(model, "--student"), model.training
    device, num_ids = split.device, split.num_ids
    lengths = [length for row in rows for length in row]
    tokens = (torch.arange(sum(lengths), device=device) * 5 + 1) % num_ids
    positions = torch.cat([torch.arange(length, device=device) for length in lengths])
    model.eval()
    packed = split.hidden(
        tokens.view(len(rows), -1), position_ids=positions.view(len(rows), -1)
    ).flatten(0, 1)
    alone = [split.hidden(part[None])[0] for part in torch.split(tokens, lengths)]
    model.train(training)
    return torch.allclose(packed, torch.cat(alone), rtol=_TOLERANCE, atol=_TOLERANCE)
