"""Several examples in one row of a batch, and whether a student's attention keeps them apart.

Legend: B examples, R rows of a batch, T their length, H hidden width.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from caskd.train.data.order import IntArray

_TOLERANCE = 1e-4
_PROBE = ((7, 3), (5, 5))  # lengths of the examples in each row


def row_starts(lengths: Sequence[int]) -> tuple[list[int], int]:
    """Where each example starts, row by row, if they are put into rows as long as the longest.

    Each goes into the first row that has room; with lengths in descending order, little stays
    empty.

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
    """Position ids [R, T] that start at 0 with every example, and with what is left of a row.

    Without an attention mask, transformers sees from them where an example ends
    (`masking_utils.find_packed_sequence_indices`).
    """
    size = num_rows * int(lengths.max())
    first = np.zeros(size, np.int64)
    ends = (starts + lengths)[starts + lengths < size]  # of examples: something else starts there
    for begin in (np.arange(0, size, size // num_rows), starts, ends):
        first[begin] = begin
    return (np.arange(size) - np.maximum.accumulate(first)).reshape(num_rows, -1)


@torch.no_grad()
def keeps_examples_apart(model: Any) -> bool:
    """Whether the hidden states of packed examples are those of each alone: tried out on some."""
    if "position_ids" not in inspect.signature(model.base_model.forward).parameters:
        return False
    device = model.get_input_embeddings().weight.device
    num_ids = model.get_input_embeddings().weight.shape[0]
    lengths = [length for row in _PROBE for length in row]
    tokens = (torch.arange(sum(lengths), device=device) * 5 + 1) % num_ids
    positions = torch.cat([torch.arange(length, device=device) for length in lengths])
    body, training = model.base_model, model.training
    model.eval()
    packed = body(
        input_ids=tokens.view(len(_PROBE), -1),
        position_ids=positions.view(len(_PROBE), -1),
        use_cache=False,
    ).last_hidden_state.flatten(0, 1)
    alone = [
        body(input_ids=part[None], use_cache=False).last_hidden_state[0]
        for part in tokens.split(lengths)
    ]
    model.train(training)
    return torch.allclose(packed, torch.cat(alone), rtol=_TOLERANCE, atol=_TOLERANCE)
