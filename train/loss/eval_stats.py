"""Statistics of a student on rows of an evaluation store: one matrix product, no gradient.

`row_stats` computes them per row, `sum_row_stats` adds them up per group, so that ranks can add
their sums, and `eval_metrics` turns sums into the averages of eval.jsonl.

Dimension letters: N rows, n rows of a tile, V vocabulary of the student's head, H hidden width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from caskd.models.decoding import acceptance_bounds
from caskd.train.loss.mask import keep_mask
from caskd.train.loss.matmul import product_dtype, write_product_
from caskd.train.loss.targets import Targets, stored_probabilities, teacher_targets
from caskd.train.loss.types import Head, LossRows
from caskd.train.objectives import AnyRule

ROW_STATS = (
    "nll", "correct", "confidence", "kl", "distilled", "kept", "acceptance_low", "acceptance_high"
)  # fmt: skip
"""Columns of `row_stats`. Their units: nats, 0 or 1, probability, nats, 0 or 1, 0 or 1, and twice
probability."""

TILE_BYTES = 64 << 20
NUM_BINS = 15
"""Bins of the calibration error, of equal width on [0, 1]."""


@torch.no_grad()
def row_stats(
    hidden: Tensor, head: Head, rows: LossRows, rule: AnyRule, call_column: int | None = None
) -> Tensor:
    """Statistics [N, len(ROW_STATS)] of each row, float32.

    `confidence` is the probability of the student's argmax. `kl` runs from the teacher's stored
    distribution, with its tail as one bucket, to the student's; it is 0 where `distilled` is 0. So
    are the bounds of the student's acceptance as the teacher's draft model.

    Args:
        hidden: [N, H].
        rows: with the teacher's distribution.
        rule: of the mask in column `kept`. For `given` the column is nan: that mask is defined for
            training steps only.
        call_column: of the head, which is outside its softmax; None if it has none.
    """
    size = max(1, TILE_BYTES // (4 * len(head.weight)))
    parts = []
    for start in range(0, len(hidden), size):
        tile = torch.arange(start, min(start + size, len(hidden)), device=hidden.device)
        parts.append(_tile_stats(hidden[tile], head, rows.take(tile), rule, call_column))
    return torch.cat(parts) if parts else hidden.new_zeros(0, len(ROW_STATS)).float()


def _tile_stats(
    hidden: Tensor, head: Head, rows: LossRows, rule: AnyRule, call_column: int | None
) -> Tensor:
    logits = _logits(hidden, head)  # [n, V]
    num_columns = logits.shape[1]
    if call_column is not None:
        logits[:, call_column] = -torch.inf
        num_columns -= 1
    logprobs = logits.log_softmax(1)
    confidence, argmax = logprobs.max(1)
    nll = -logprobs.gather(1, rows.labels[:, None]).squeeze(1)
    low, high = torch.zeros_like(nll), torch.zeros_like(nll)
    kl, distilled, teacher_argmax = torch.zeros_like(nll), torch.zeros_like(nll), None
    if rows.teacher is not None:
        targets = teacher_targets(rows.teacher, "bucket", num_columns, logprobs.dtype)
        kl = torch.where(targets.present, _kl(logprobs, targets), 0)
        kept = stored_probabilities(rows.teacher, targets.valid, logprobs.dtype)
        bounds = acceptance_bounds(logprobs.gather(1, targets.ids).exp(), kept)
        low, high = (torch.where(targets.present, bound, 0) for bound in bounds)
        distilled, teacher_argmax = targets.present.to(kl.dtype), rows.teacher.argmax
    is_kept = (
        torch.full_like(nll, torch.nan)
        if rule == "given"
        else keep_mask(argmax, teacher_argmax, rows.labels, rule)
    )
    correct = argmax == rows.labels
    columns = (nll, correct, confidence.exp(), kl, distilled, is_kept, low, high)
    return torch.stack([column.float() for column in columns], dim=1)


def _logits(hidden: Tensor, head: Head) -> Tensor:
    """[n, V] in float32 or float64."""
    operand, result = product_dtype(hidden.dtype, hidden.device)
    logits = hidden.new_empty(len(hidden), len(head.weight), dtype=result)
    write_product_(logits, hidden.to(operand), head.weight.to(operand).T)
    return head.finish_(logits)


def _kl(logprobs: Tensor, targets: Targets) -> Tensor:
    """[n] KL from the sparse targets and their bucket to log-probabilities [n, V]."""
    ours = logprobs.gather(1, targets.ids)  # [n, k]
    inside = torch.where(targets.valid, ours.exp(), 0).sum(1)
    outside = torch.log1p(-inside.clamp(max=1 - 2**-24))
    cells = (targets.mass * ours).sum(1)
    tail = torch.where(targets.tail > 0, targets.tail * outside, 0)
    return targets.negative_entropy() - cells - tail


def sum_row_stats(stats: Tensor, group: Tensor, num_groups: int) -> Tensor:
    """Sums per group: float64 [num_groups, 1 + len(ROW_STATS) + 3 * NUM_BINS]. Ranks add them up.

    The columns of a group: its number of rows; the sum of each statistic; then, for each bin of
    confidence, the number of rows, of correct rows, and the sum of confidence.

    Args:
        stats: [N, len(ROW_STATS)].
        group: [N] int64, in [0, num_groups).
    """
    values = stats.double()
    confidence = values[:, ROW_STATS.index("confidence")]
    correct = values[:, ROW_STATS.index("correct")]
    bins = (confidence * NUM_BINS).long().clamp(0, NUM_BINS - 1)
    ones = torch.ones_like(confidence)
    sums = values.new_zeros(num_groups, 1 + len(ROW_STATS) + 3 * NUM_BINS)
    sums[:, : 1 + len(ROW_STATS)].index_add_(0, group, torch.cat([ones[:, None], values], 1))
    binned = sums[:, 1 + len(ROW_STATS) :].view(num_groups, 3, NUM_BINS)
    for row, value in enumerate((ones, correct, confidence)):
        binned[:, row].index_put_((group, bins), value, accumulate=True)
    return sums


@dataclass(frozen=True)
class EvalMetrics:
    """Averages over a set of rows; None where the count is 0 or the average is not finite."""

    num_rows: int
    nll: float | None
    accuracy: float | None
    kl: float | None
    keep_fraction: float | None
    ece: float | None
    """Expected calibration error: |accuracy - confidence| of each bin, weighted by its rows."""
    acceptance_low: float | None
    """Bounds of the expected acceptance of the student as the teacher's draft model."""
    acceptance_high: float | None


def eval_metrics(sums: npt.NDArray[np.float64], *, knows_topk: bool = True) -> EvalMetrics:
    """The averages of sums [..., columns] of `sum_row_stats`, over all axes but the last.

    Args:
        sums: of `sum_row_stats`.
        knows_topk: whether the rows have the teacher's top-k, which bounds the acceptance.
    """
    total = sums.reshape(-1, sums.shape[-1]).sum(0)
    num_rows, totals = total[0], dict(zip(ROW_STATS, total[1:].tolist(), strict=False))
    _, correct, confidence = total[1 + len(ROW_STATS) :].reshape(3, NUM_BINS)
    ece = _ratio(float(np.abs(correct - confidence).sum()), num_rows)
    return EvalMetrics(
        num_rows=int(num_rows),
        nll=_ratio(totals["nll"], num_rows),
        accuracy=_ratio(totals["correct"], num_rows),
        kl=_ratio(totals["kl"], totals["distilled"]),
        keep_fraction=_ratio(totals["kept"], num_rows),
        ece=ece,
        acceptance_low=_ratio(totals["acceptance_low"], knows_topk * totals["distilled"]),
        acceptance_high=_ratio(totals["acceptance_high"], knows_topk * totals["distilled"]),
    )


def _ratio(value: float, count: float) -> float | None:
    ratio = value / count if count else None
    return ratio if ratio is not None and np.isfinite(ratio) else None


def best_step(lines: Sequence[Mapping[str, Any]], metric: str) -> int | None:
    """The step whose line has the best value of `metric`: the first of equal ones, None if every
    value is None."""
    sign = -1.0 if metric == "accuracy" else 1.0
    values = [(sign * x[metric], x["step"]) for x in lines if x[metric] is not None]
    return int(min(values)[1]) if values else None
