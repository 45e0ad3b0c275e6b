"""The arms that are compared with cat-xent: rules of row weights, and options of `caskd train`.

With label y, teacher p_T and student argmax a_S of the same forward, a rule first gives each row a
value from the store, for example p_T(y). Where the rule says `either`, a row that the student gets
right has the value 1, as in the mask of CAT: max(1[a_S = y], p_T(y)). Then the values of an answer
may be pooled. The result multiplies the row's cross-entropy; the sum is divided by the number of
all rows, as with cat-xent.

Legend: B answers of a micro-batch, N rows (predicted tokens) of a micro-batch.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from caskd.store import StoreBatch
from caskd.train.data import WeighedRows

Values = npt.NDArray[np.float32]
Pooled = Literal["rows", "share", "half", "whole"]
"""`rows`: each row for itself. `share`: the mean over the answer's rows. `half`, `whole`: 1 in an
answer whose mean is at least 1/2, or 1; else 0."""


def label_probability(batch: StoreBatch) -> Values:
    """p_T(y)."""
    return _known(batch, np.exp(batch.column("label_logit") - batch.column("logsumexp")))


def label_share(batch: StoreBatch) -> Values:
    """p_T(y) / max p_T, which is 1 where the teacher is right."""
    best = batch.column("topk_logits").max(axis=1)
    share = np.exp(np.minimum(batch.column("label_logit") - best, 0))
    return _known(batch, np.where(batch.column("label_rank") == 0, 1, share))


def rank_below(limit: int) -> Callable[[StoreBatch], Values]:
    """1 where fewer than `limit` tokens come before the label in the teacher's order, else 0."""
    return lambda batch: _known(batch, batch.column("label_rank") < limit)


def _known(batch: StoreBatch, values: npt.NDArray[np.generic]) -> Values:
    """The values, and 0 in rows without a teacher row."""
    return np.where(batch.column("num_kept") > 0, values, 0).astype(np.float32)


teacher_right = rank_below(1)


@dataclass(frozen=True)
class Rule:
    """A rule of row weights (`caskd.train.data.RowWeights`)."""

    name: str
    value: Callable[[StoreBatch], Values]
    reads: tuple[str, ...]
    """Row fields of the store."""
    either: bool = False
    """Whether a row that the student gets right has the value 1."""
    pooled: Pooled = "rows"

    @property
    def fields(self) -> tuple[str, ...]:
        return ("num_kept", *self.reads)

    @property
    def needs_student(self) -> bool:
        return self.either

    def values(self, step: int, batch: StoreBatch) -> Values:
        """[N] from the store."""
        return self.value(batch)

    def weights(self, rows: WeighedRows, right: Tensor | None) -> Tensor:
        """[N] with the student's argmax, and pooled."""
        values = rows.values
        if right is not None:
            values = torch.where(right, 1.0, values)
        if self.pooled == "rows":
            return values
        mean = answer_means(values, rows.answers)[rows.answers]
        if self.pooled == "share":
            return mean
        return (mean >= (0.5 if self.pooled == "half" else 1.0)).to(values.dtype)


def answer_means(values: Tensor, answers: Tensor) -> Tensor:
    """Mean [B] of the values [N] of each answer, summed in float64: equal values have that mean."""
    size = int(answers[-1]) + 1 if len(answers) else 0
    sums = values.new_zeros(size, dtype=torch.float64).index_add(0, answers, values.double())
    counts = torch.bincount(answers, minlength=size)
    return (sums / counts).to(values.dtype)


_LABEL, _SHARE = ("label_logit", "logsumexp"), ("label_logit", "label_rank", "topk_logits")
_RANK = ("label_rank",)
RULES: Mapping[str, Rule] = {
    rule.name: rule
    for rule in (
        Rule("soft", label_probability, _LABEL),
        Rule("soft-either", label_probability, _LABEL, either=True),
        Rule("ratio", label_share, _SHARE),
        Rule("ratio-either", label_share, _SHARE, either=True),
        Rule("rank2", rank_below(2), _RANK, either=True),
        Rule("rank4", rank_below(4), _RANK, either=True),
        Rule("answer-teacher", teacher_right, _RANK, pooled="share"),
        Rule("answer-either", teacher_right, _RANK, either=True, pooled="share"),
        Rule("answer-half", teacher_right, _RANK, either=True, pooled="half"),
        Rule("answer-whole", teacher_right, _RANK, either=True, pooled="whole"),
    )
}
"""Rules by the name of their arm."""


@dataclass(frozen=True)
class Flags:
    """An arm that `caskd train` has flags for; its control is a random mask that keeps as much."""

    objective: str
    control: str | None
    """Objective of the control; None for an arm that keeps every row."""
    flags: tuple[str, ...] = ()
    """Further flags of both."""
    draws: bool = False
    """Whether the store holds draws of the teacher, not its top-k."""


LATE = "late"
FLAGS: Mapping[str, Flags] = {
    "xent": Flags("xent", None),
    "cat-xent": Flags("cat-xent", "random-xent"),
    "cat-dist": Flags("cat-dist", "random-dist"),
    "cat-dist-draws": Flags("cat-dist", "random-dist", draws=True),
    "gatekeeper": Flags("cat-xent", "random-xent", ("--confidence", "gatekeeper")),
    "cascade-gatekeeper": Flags("cat-xent", "random-xent", ("--confidence", "cascade-gatekeeper")),
    LATE: Flags("cat-xent", "random-xent"),
}
"""Arms by name. `late` trains half of its steps on all rows first; its control has the same
fractions, step by step."""

BASES = ("xent", "cat-xent")
"""What every other arm is compared with."""
ANSWER_ARMS = tuple(name for name, rule in RULES.items() if rule.pooled != "rows")
"""In a pool of answers of one row they are cat-xent, or cat-xent-l, and are left out."""
CONTROL = "random-"


def arms_of(one_row: bool) -> tuple[str, ...]:
    """The arms of a pool, the bases first.

    Args:
        one_row: whether an answer is one token.
    """
    others = [name for name in (*RULES, *FLAGS) if name not in BASES]
    return (*BASES, *(name for name in others if not one_row or name not in ANSWER_ARMS))


def control_of(arm: str) -> str | None:
    """Name of the random control of an arm; None for xent, which keeps every row."""
    return None if arm in FLAGS and FLAGS[arm].control is None else CONTROL + arm
