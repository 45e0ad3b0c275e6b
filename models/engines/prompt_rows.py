"""Log-probabilities of a prompt's own tokens, as servers give them, checked and put in order.

Legend: N rows of one prompt, k cells per row.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from caskd.store.errors import TeacherError

CLAMPED = -9999.0
"""What vLLM writes in place of a log-probability of minus infinity."""
_PADDING = np.iinfo(np.int64).max
_ROUNDING = 1e-2  # of a sum of probabilities that were rounded to bfloat16 before the softmax

Cells = Mapping[int, float]
"""Log-probability of each id that an answer names for one token."""


class NonFiniteError(Exception):
    """The model produced NaN or Inf for this prompt."""


@dataclass(frozen=True, eq=False)
class PromptRows:
    """What a server says of N tokens.

    Attributes:
        ids: [N, k] most likely ids by descending log-probability, ties to the lowest id.
        logprobs: [N, k] their log-probabilities in nats; -inf where the server clamped them.
        label_logprobs: [N] of the tokens themselves.
        label_ranks: [N] the token's place in its row; k where it is not among the k.
    """

    ids: npt.NDArray[np.int64]
    logprobs: npt.NDArray[np.float32]
    label_logprobs: npt.NDArray[np.float32]
    label_ranks: npt.NDArray[np.int64]


def ordered_rows(
    rows: Sequence[Cells],
    labels: Sequence[int],
    k: int,
    num_ids: int,
    num_columns: int | None = None,
) -> PromptRows:
    """Check the cells of each row and put them in rank order.

    Args:
        rows: of each token: the server's k most likely ids, and the token itself.
        labels: the tokens.
        k: cells of a row.
        num_ids: ids of the vocabulary. Columns of the model from there on, which pad its embedding,
            are left out of the cells: such a row has fewer than k.
        num_columns: columns of the model; `num_ids` by default.

    Raises:
        NonFiniteError: a value is NaN.
        TeacherError: a row lacks its token, has another number of cells, an id outside of the
            model's columns, or values that are no log-probabilities.
    """
    for cells, label in zip(rows, labels, strict=True):
        if label not in cells:
            raise TeacherError(
                f"server: a row lacks its own token {label}; expected the ids that were sent; "
                "check that one model answers behind --url"
            )
        if len(cells) not in (k, k + 1):
            raise TeacherError(
                f"server: a row has {len(cells)} cells; expected the {k} most likely and the "
                "token; check the server's version"
            )
    ids = np.full((len(rows), k + 1), _PADDING)
    logprobs = np.full((len(rows), k + 1), -np.inf)
    for row, cells in enumerate(rows):
        ids[row, : len(cells)] = list(cells)
        logprobs[row, : len(cells)] = list(cells.values())
    own = np.array([cells[label] for cells, label in zip(rows, labels, strict=True)], np.float64)
    _check_values(ids[ids != _PADDING], logprobs, num_columns or num_ids)
    order = np.lexsort((ids, -logprobs))
    ids, logprobs = (np.take_along_axis(values, order, 1) for values in (ids, logprobs))
    place = (ids == np.asarray(labels, np.int64)[:, None]).argmax(axis=1)
    # The first k alone: a token behind them is no cell, also where another one is left out.
    ids, foreign = ids[:, :k], ids[:, :k] >= num_ids
    logprobs = np.where(foreign | (logprobs[:, :k] <= CLAMPED), -np.inf, logprobs[:, :k])
    order = np.argsort(foreign, axis=1, kind="stable")
    before = (foreign & (np.arange(k) < place[:, None])).sum(axis=1)
    return PromptRows(
        np.take_along_axis(ids, order, 1),
        np.take_along_axis(logprobs, order, 1).astype(np.float32),
        own.astype(np.float32),
        np.where(place < k, place - before, k),
    )


def _check_values(
    ids: npt.NDArray[np.int64], logprobs: npt.NDArray[np.float64], num_columns: int
) -> None:
    if np.isnan(logprobs).any() or (logprobs == np.inf).any():
        raise NonFiniteError
    if len(ids) and (ids.max() >= num_columns or ids.min() < 0):
        raise TeacherError(
            f"server: names id {int(ids.max())}, but the model of --teacher has {num_columns:,} "
            "columns; expected ids of that model; pass the --teacher folder that is served"
        )
    total = np.exp(np.minimum(logprobs, 1)).sum(axis=1)
    if (total > 1 + _ROUNDING).any():
        raise TeacherError(
            f"server: probabilities of a row add up to {total.max():.4f}; expected at most 1, the "
            "log-probabilities of temperature 1; check the server's --logprobs-mode"
        )
