"""The row fields of a topk store, from a server's log-probabilities.

Legend: N rows, R rows of a shard, k cells kept per row.
"""

import numpy as np
import numpy.typing as npt

from caskd.models.engines import CLAMPED, PromptRows
from caskd.precompute.rows.topk import Fields, filler_rows
from caskd.store.cells import kept_cells


def log_prob_fields(
    ids: npt.NDArray[np.int64],
    logprobs: npt.NDArray[np.float32],
    label_logprobs: npt.NDArray[np.float32],
    label_ranks: npt.NDArray[np.int64],
    min_mass: float,
) -> Fields:
    """Row fields with log-probabilities in place of logits, and a log-sum-exp of 0.

    Args:
        ids: [N, k] in rank order.
        logprobs: [N, k]; a cell of -inf is padding.
        label_logprobs: [N].
        label_ranks: [N], k beyond the k cells.
        min_mass: keep the shortest prefix of the k cells whose probability reaches this.
    """
    num_rows, k = ids.shape
    rows = filler_rows(num_rows, k)
    tails = 1 - np.exp(logprobs.astype(np.float64)).cumsum(axis=1)  # outside of the first n + 1
    num_kept = np.isfinite(logprobs).sum(axis=1)
    if min_mass < 1.0:
        num_kept = np.minimum(num_kept, 1 + (tails[:, :-1] > 1.0 - min_mass).sum(axis=1))
    cells = kept_cells(num_kept, k)
    rows["topk_ids"][cells] = ids[cells]
    rows["topk_logits"][cells] = logprobs[cells]
    rows["num_kept"][:] = num_kept
    rows["label_logit"][:] = label_logprobs
    last = np.maximum(num_kept, 1)[:, None] - 1
    rows["tail_mass"][:] = np.take_along_axis(tails, last, axis=1)[:, 0].clip(0, 1)
    rows["argmax"][:] = ids[:, 0]
    rows["label_rank"][:] = label_ranks
    return rows


def response_fields(found: PromptRows, rows: npt.NDArray[np.integer], min_mass: float) -> Fields:
    """Row fields of some of a prompt's rows."""
    return log_prob_fields(
        found.ids[rows],
        found.logprobs[rows],
        found.label_logprobs[rows],
        found.label_ranks[rows],
        min_mass,
    )


def log_prob_counts(rows: Fields, top_k: int) -> dict[str, int]:
    """Rows of a shard whose values a server left open.

    Returns:
        `tied_rows`: the last cell ties with the one before, so that another id with the same value
        may be missing; `capped_rows`: the label is not among the k cells; `clamped_rows`: the
        label's probability is 0.
    """
    kept, logits = rows["num_kept"], rows["topk_logits"]
    full = kept == top_k
    tied = full & (logits[:, -1] == logits[:, -2]) if top_k > 1 else np.zeros_like(full)
    known = kept > 0
    return {
        "tied_rows": int(tied.sum()),
        "capped_rows": int((known & (rows["label_rank"] >= top_k)).sum()),
        "clamped_rows": int((known & (rows["label_logit"] <= CLAMPED)).sum()),
    }
