"""What a student says of rows that it is not trained on: one product, no gradient.

Dimension letters: N rows, n rows of a tile, V vocabulary of the student's head, H hidden width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from caskd.train.loss.mask import keep_mask
from caskd.train.loss.matmul import product_dtype, write_product_
from caskd.train.loss.targets import Targets, teacher_targets
from caskd.train.loss.types import Head, LossRows
from caskd.train.objectives import AnyRule

MEASURES = ("nll", "correct", "confidence", "kl", "distilled", "kept")
"""Columns of `row_measures`: nats, 0 or 1, probability, nats, 0 or 1, 0 or 1."""

TILE_BYTES = 64 << 20
NUM_BINS = 15
"""Bins of the calibration error, of equal width over [0, 1]."""


@torch.no_grad()
def row_measures(hidden: Tensor, head: Head, rows: LossRows, rule: AnyRule) -> Tensor:
    """Measures [N, len(MEASURES)] of each row, float32.

    `confidence` is the probability of the student's argmax. `kl` is from the teacher's stored
    distribution, its tail as one bucket, to the student's; 0 where `distilled` is.

    Args:
        hidden: [N, H].
        rows: with the teacher's distribution.
        rule: of the mask that `kept` reports: nan for `random`, which says nothing of these rows.
    """
    size = max(1, TILE_BYTES // (4 * len(head.weight)))
    measured = []
    for start in range(0, len(hidden), size):
        tile = torch.arange(start, min(start + size, len(hidden)), device=hidden.device)
        measured.append(_tile(hidden[tile], head, rows.take(tile), rule))
    return torch.cat(measured) if measured else hidden.new_zeros(0, len(MEASURES)).float()


def _tile(hidden: Tensor, head: Head, rows: LossRows, rule: AnyRule) -> Tensor:
    logprobs = _logits(hidden, head).log_softmax(1)  # [n, V]
    confidence, argmax = logprobs.max(1)
    nll = -logprobs.gather(1, rows.labels[:, None]).squeeze(1)
    kl, distilled, teacher_argmax = torch.zeros_like(nll), torch.zeros_like(nll), None
    if rows.teacher is not None:
        targets = teacher_targets(rows.teacher, "bucket", logprobs.shape[1], logprobs.dtype)
        kl = torch.where(targets.present, _kl(logprobs, targets), 0)
        distilled, teacher_argmax = targets.present.to(kl.dtype), rows.teacher.argmax
    kept = (
        torch.full_like(nll, torch.nan)
        if rule == "random"
        else keep_mask(argmax, teacher_argmax, rows.labels, rule)
    )
    correct = argmax == rows.labels
    columns = (nll, correct, confidence.exp(), kl, distilled, kept)
    return torch.stack([column.float() for column in columns], dim=1)


def _logits(hidden: Tensor, head: Head) -> Tensor:
    """[n, V] in float32 or float64."""
    operand, result = product_dtype(hidden.dtype, hidden.device)
    logits = hidden.new_empty(len(hidden), len(head.weight), dtype=result)
    write_product_(logits, hidden.to(operand), head.weight.to(operand).T)
    return head.finish_(logits)


def _kl(logprobs: Tensor, targets: Targets) -> Tensor:
    """[n] of the sparse targets and their bucket against log-probabilities [n, V]."""
    ours = logprobs.gather(1, targets.ids)  # [n, k]
    inside = torch.where(targets.valid, ours.exp(), 0).sum(1)
    outside = torch.log1p(-inside.clamp(max=1 - 2**-24))
    cells = (targets.mass * ours).sum(1)
    tail = torch.where(targets.tail > 0, targets.tail * outside, 0)
    return targets.negative_entropy() - cells - tail


def tally_measures(measures: Tensor, group: Tensor, num_groups: int) -> Tensor:
    """Sums that ranks can add up: [num_groups, 1 + len(MEASURES) + 3 * NUM_BINS] in float64.

    A group's line: its rows, the sum of each measure, then rows, correct ones and confidence of
    each bin of confidence.

    Args:
        measures: [N, len(MEASURES)].
        group: [N] int64, in [0, num_groups).
    """
    values = measures.double()
    confidence = values[:, MEASURES.index("confidence")]
    correct = values[:, MEASURES.index("correct")]
    bins = (confidence * NUM_BINS).long().clamp(0, NUM_BINS - 1)
    ones = torch.ones_like(confidence)
    sums = values.new_zeros(num_groups, 1 + len(MEASURES) + 3 * NUM_BINS)
    sums[:, : 1 + len(MEASURES)].index_add_(0, group, torch.cat([ones[:, None], values], 1))
    binned = sums[:, 1 + len(MEASURES) :].view(num_groups, 3, NUM_BINS)
    for line, value in enumerate((ones, correct, confidence)):
        binned[:, line].index_put_((group, bins), value, accumulate=True)
    return sums


@dataclass(frozen=True)
class Figures:
    """The figures of a set of rows; None where there is nothing to divide by."""

    num_rows: int
    nll: float | None
    accuracy: float | None
    kl: float | None
    keep_fraction: float | None
    ece: float | None
    """Expected calibration error: |accuracy - confidence| over bins, weighted by their rows."""


def figures_of(sums: npt.NDArray[np.float64]) -> Figures:
    """The figures of sums [..., columns] of `tally_measures`, over all axes but the last."""
    line = sums.reshape(-1, sums.shape[-1]).sum(0)
    num_rows, totals = line[0], dict(zip(MEASURES, line[1:].tolist(), strict=False))
    _, correct, confidence = line[1 + len(MEASURES) :].reshape(3, NUM_BINS)
    ece = _ratio(float(np.abs(correct - confidence).sum()), num_rows)
    return Figures(
        num_rows=int(num_rows),
        nll=_ratio(totals["nll"], num_rows),
        accuracy=_ratio(totals["correct"], num_rows),
        kl=_ratio(totals["kl"], totals["distilled"]),
        keep_fraction=_ratio(totals["kept"], num_rows),
        ece=ece,
    )


def _ratio(value: float, count: float) -> float | None:
    ratio = value / count if count else None
    return ratio if ratio is not None and np.isfinite(ratio) else None


def best_step(lines: Sequence[Mapping[str, Any]], metric: str) -> int | None:
    """The step whose line has the best value of `metric`; the first of equals, None without any."""
    sign = -1.0 if metric == "accuracy" else 1.0
    valued = [(sign * x[metric], x["step"]) for x in lines if x[metric] is not None]
    return int(min(valued)[1]) if valued else None
