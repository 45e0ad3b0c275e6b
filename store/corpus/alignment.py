"""Alignment of logits and labels: which position predicts which token.

Legend: T tokens of one example, N rows (predicted response tokens).

A *row* is a response token at a position >= 1. Its distribution, of teacher and student, is the
model's output at the position *before* it. Capture, training and tests all call these functions, so
that an off-by-one can exist in this module only.
"""

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]


def row_positions(is_response: npt.NDArray[np.uint8]) -> IntArray:
    """Positions [N] of the tokens with a row: is_response = 1 at a position >= 1."""
    positions = np.flatnonzero(is_response)
    return positions[positions >= 1].astype(np.int64)


def joined_row_positions(is_response: npt.NDArray[np.uint8], offsets: IntArray) -> IntArray:
    """`row_positions` of B concatenated examples, counted from the start of the first.

    Args:
        is_response: mask of all examples, [T].
        offsets: start of each example and the end of the last, [B + 1].
    """
    has_row = is_response != 0
    # An empty example starts where the next one does, or at the end of the mask.
    has_row[offsets[offsets < len(has_row)]] = False
    return np.flatnonzero(has_row)


def logit_positions(is_response: npt.NDArray[np.uint8]) -> IntArray:
    """Positions [N] of the logits that predict the rows: one before each row's token."""
    return row_positions(is_response) - 1


def row_labels(
    token_ids: npt.NDArray[np.uint32], is_response: npt.NDArray[np.uint8]
) -> npt.NDArray[np.uint32]:
    """Label [N] of each row: the response token itself."""
    return token_ids[row_positions(is_response)]


def num_rows(is_response: npt.NDArray[np.uint8]) -> int:
    """Number of rows of one example."""
    return int(np.count_nonzero(is_response[1:]))
