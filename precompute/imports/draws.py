"""Rows of counted draws: the log of the drawn share stands for each id until they are stored.

Legend: N rows, w cells of the source, D draws per row.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from caskd.precompute.config import MAX_SAMPLES
from caskd.precompute.imports.examples import ABSENT, Cells, Ids, Values
from caskd.precompute.rows import Fields, filler_draws


def drawn_shares(
    ids: Sequence[Sequence[Any]], counts: Sequence[Sequence[Any]]
) -> tuple[Ids, Values, int]:
    """Cells of rows of draws; an id that stands several times in a row has the sum of its counts.

    Args:
        ids: N lists; None and -1 mark an absent cell.
        counts: N lists of the same lengths; 0 and None mark an absent cell.

    Returns:
        Ids [N, w], log(count / D) [N, w], and D; 0 without a row.

    Raises:
        ValueError: the lists differ in length, hold something other than ids and counts, or the
            counts of the rows have different sums.
    """
    if len(ids) != len(counts):
        raise ValueError(f"{len(ids)} rows of ids, but {len(counts)} of counts")
    rows = [_merged(n, a or [], b or []) for n, (a, b) in enumerate(zip(ids, counts, strict=True))]
    sums = sorted({sum(row.values()) for row in rows if row})
    if len(sums) > 1:
        raise ValueError(f"rows of {sums[0]} and of {sums[-1]} draws; expected one number")
    num_draws = sums[0] if sums else 0
    if num_draws > MAX_SAMPLES:
        raise ValueError(f"a row of {num_draws:,} draws; expected at most {MAX_SAMPLES:,}")
    width = max(map(len, rows), default=0)
    found = np.full((len(rows), width), ABSENT, np.int64)
    shares = np.full((len(rows), width), np.nan, np.float32)
    for n, row in enumerate(rows):
        found[n, : len(row)] = list(row)
        shares[n, : len(row)] = np.log(np.array(list(row.values())) / max(num_draws, 1))
    return found, shares, num_draws


def _merged(number: int, ids: Any, counts: Any) -> dict[int, int]:
    """Counts of one row by id, in the order of the source."""
    if not isinstance(ids, list) or not isinstance(counts, list) or len(ids) != len(counts):
        raise ValueError(f"row {number}: ids and counts are not two lists of one length")
    row: dict[int, int] = {}
    for id_, count in zip(ids, counts, strict=True):
        if id_ is None or id_ == ABSENT or count is None or count == 0:
            continue
        if type(id_) is not int or not 0 <= id_ < 1 << 32:
            raise ValueError(f"row {number}: {str(id_)[:30]!r} is no token id")
        if type(count) is not int or count < 0:
            raise ValueError(f"row {number}: {str(count)[:30]!r} is no count of draws")
        row[id_] = row.get(id_, 0) + count
    return row


def draw_fields(cells: Cells, labels: npt.NDArray[Any], num_draws: int) -> Fields:
    """Row fields of a sampled store [N] and [N, D].

    No distribution is known beside the draws: `label_logit` is log(count / D) of a label that was
    drawn and -inf of others, `logsumexp` is 0, and `argmax` and `label_rank` are 0.

    Args:
        cells: of `drawn_shares`, by descending share and ascending id.
        labels: [N].
        num_draws: D.
    """
    rows, width = filler_draws(len(labels), num_draws), cells.ids.shape[1]
    rows["sampled_ids"][:, :width] = cells.ids
    rows["sampled_counts"][:, :width] = np.rint(
        np.exp(cells.logprobs.astype(np.float64)) * num_draws
    )
    rows["num_kept"][:] = cells.num_kept
    drawn = (cells.ids == labels[:, None]) & np.isfinite(cells.logprobs)
    rows["label_logit"][:] = np.where(drawn, cells.logprobs, -np.inf).max(axis=1, initial=-np.inf)
    return rows
