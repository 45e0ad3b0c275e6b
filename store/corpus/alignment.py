"""Which position predicts which token: the one place where an off-by-one could exist.

Legend: T tokens of one example, N rows (predicted response tokens).

A *row* is a response token at a position >= 1; its teacher distribution, and the student's, is what
the model says at the position *before* it. Capture, training and tests all call these functions.
"""

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]


def row_positions(is_response: npt.NDArray[np.uint8]) -> IntArray:
    """Positions [N] of the tokens that have a row: is_response = 1 at a position >= 1."""
    positions = np.flatnonzero(is_response)
    return positions[positions >= 1].astype(np.int64)


def joined_row_positions(is_response: npt.NDArray[np.uint8], offsets: IntArray) -> IntArray:
    """The same of several examples that stand one behind the other, counted from the first one.

    Args:
        is_response: of all of them, [T].
        offsets: where each begins, and the end of the last, [B + 1].
    """
    has_row = is_response != 0
    # An example without tokens begins where the next one does, or at the very end.
    has_row[offsets[offsets < len(has_row)]] = False
    return np.flatnonzero(has_row)


def logit_positions(is_response: npt.NDArray[np.uint8]) -> IntArray:
    """Positions [N] whose logits predict the rows: one before each row's own token."""
    return row_positions(is_response) - 1


def row_labels(
    token_ids: npt.NDArray[np.uint32], is_response: npt.NDArray[np.uint8]
) -> npt.NDArray[np.uint32]:
    """Label [N] of each row: the response token itself."""
    return token_ids[row_positions(is_response)]


def num_rows(is_response: npt.NDArray[np.uint8]) -> int:
    """Number of rows of one example."""
    return int(np.count_nonzero(is_response[1:]))
