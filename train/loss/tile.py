"""Loss and gradient of one tile of logits. A tile is read once, then overwritten by its gradient.

With q the student's softmax, t the targets on K (the top-k), r the bucket's target, P = sum t,
u = 1 - w and Q' = the student's mass outside K, one row's gradient with respect to its logits is

    on K          (w + u (P + r)) q_k - u t_k             - w [k = label]
    outside K     (w + u (P + r)) q_j - u r q_j / Q'      - w [j = label]

(r = 0 without a bucket). The top-k cells are removed from the tile first and written last. So
neither the student's tail nor these cells are computed as a difference, which would lose all digits
once the tail is below the rounding of the head. And q_j / Q' is a softmax of the cells outside K
alone, which does not underflow however small Q' is.

A confidence term c (log V - H), with H the student's entropy, adds c q_j (log q_j + H) to every
cell.

A CALL column is removed from the tile like a top-k cell, so that it is in no softmax. Its loss has
other factors in place of w + u (P + r), and its own cell (see `caskd.train.delegation`).

`TileKernels` compute whole rows; everything in this module is [n] or [n, k].

Dimension letters: n rows of a tile, m of them live, k stored cells of a teacher row, V student
vocabulary.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from caskd.train.delegation import CallTerms
from caskd.train.loss.targets import StudentRows, Targets, sum_rows, teacher_targets
from caskd.train.loss.types import Head, LossRows, LossSums, LossTerms


@dataclass(frozen=True, eq=False)
class NonTopK:
    """Statistics of a tile's rows without their top-k cells."""

    argmax: Tensor
    """[n] ties to the lowest id."""
    peak: Tensor
    """[n] the largest logit, finite."""
    total: Tensor
    """[n] sum of exp(logit - peak)."""
    moment: Tensor | None = None
    """[n] sum of (logit - peak) exp(logit - peak); None where nothing reads it."""

    def take(self, index: Tensor) -> "NonTopK":
        """The rows at `index`."""
        moment = None if self.moment is None else self.moment[index]
        return NonTopK(self.argmax[index], self.peak[index], self.total[index], moment)


@dataclass(frozen=True, eq=False)
class GradTerms:
    """Terms of a live row's gradient: exp(logit - peak) * weight, plus `at_label` at the label."""

    peak: Tensor
    """[m]."""
    weight: Tensor
    """[m]."""
    labels: Tensor
    """[m]."""
    at_label: Tensor
    """[m]."""
    softcap: float | None
    """The head's; its slope multiplies the first term. `at_label` already contains it."""
    log_weight: Tensor | None = None
    """[m] times logit - peak is added to `weight`; None without a confidence term."""


class TileKernels(Protocol):
    """The two passes over whole rows. An implementation may keep values in the tile in between."""

    def read_(self, tile: Tensor) -> NonTopK:
        """Read logits [n, V], some of them -inf."""

    def differentiate_(self, tile: Tensor, live: Tensor, terms: GradTerms) -> Tensor:
        """The gradient [m, V] of the rows `live` (ascending) of the tile just read, packed."""


@dataclass(frozen=True, eq=False)
class TopKForward:
    """Targets and logits of a tile's top-k cells."""

    targets: Targets
    logits: Tensor
    """[n, k]."""

    def take(self, index: Tensor) -> "TopKForward":
        """The rows at `index`."""
        return TopKForward(self.targets.take(index), self.logits[index])


@dataclass(frozen=True, eq=False)
class TileForward:
    """Values of a tile's forward that its gradient needs."""

    factor: Tensor
    """[n] of the row's loss; 0 where the mask drops the row."""
    labels: Tensor
    """[n]."""
    label_logit: Tensor
    """[n]."""
    rest: NonTopK
    peak: Tensor
    """[n] the largest of all logits."""
    total: Tensor
    """[n] sum of exp(logit - peak) over all logits."""
    topk: TopKForward | None
    call: CallTerms | None = None
    """Of a head with a CALL column."""
    call_logit: Tensor | None = None
    """[n] of that column."""
    unsure: Tensor | None = None
    """[n] factor of the confidence term; None without one."""
    entropy: Tensor | None = None
    """[n] of the student, in nats; None without a confidence term."""

    def live(self) -> Tensor:
        """[m] rows that have a gradient, ascending."""
        counts = self.factor if self.unsure is None else (self.factor != 0) | (self.unsure != 0)
        return counts.nonzero().squeeze(1)

    def take(self, index: Tensor) -> "TileForward":
        """The rows at `index`."""
        return TileForward(
            self.factor[index],
            self.labels[index],
            self.label_logit[index],
            self.rest.take(index),
            self.peak[index],
            self.total[index],
            None if self.topk is None else self.topk.take(index),
            None if self.call is None else self.call.take(index),
            None if self.call_logit is None else self.call_logit[index],
            None if self.unsure is None else self.unsure[index],
            None if self.entropy is None else self.entropy[index],
        )


def forward_tile_(
    logits: Tensor, rows: LossRows, terms: LossTerms, kernels: TileKernels
) -> tuple[LossSums, TileForward]:
    """Sums and per-row values of logits [n, V]. It removes the top-k cells from `logits`, and the
    CALL column."""
    call_logit, num_columns = None, logits.shape[1]
    if terms.delegation is not None:
        call_logit = logits[:, terms.delegation.column].clone()
        logits[:, terms.delegation.column] = -torch.inf
        num_columns -= 1
    label_logit = logits.gather(1, rows.labels[:, None]).squeeze(1)
    topk = None
    if rows.teacher is not None and rows.teacher.has_distribution:
        targets = teacher_targets(rows.teacher, terms.tail, num_columns, logits.dtype)
        topk = TopKForward(targets, logits.gather(1, targets.ids))
        # A row without a teacher row has filler id 0 in every cell; its logits stay as they are.
        remaining = topk.logits.masked_fill(targets.present[:, None], -torch.inf)
        logits.scatter_(1, targets.ids, remaining)
    rest = kernels.read_(logits)
    argmax, peak, total = rest.argmax, rest.peak, rest.total
    if topk is not None:
        argmax, peak, total = _with_topk(rest, topk)
    log_total = total.log()
    entropy = uniform_kl = None
    if terms.confidence is not None:
        entropy = _entropy(rest, topk, peak, total)
        uniform_kl = math.log(logits.shape[1]) - entropy
    student = StudentRows(
        argmax=argmax,
        label_nll=log_total + (peak - label_logit),
        teacher_cross_entropy=(
            None if topk is None else _cross_entropy(topk, rest, peak, log_total)
        ),
        confidence=-log_total,
        log_odds=None if call_logit is None else (call_logit - peak) - log_total,
        topk=None if topk is None else _probabilities(topk.logits, peak, total),
        uniform_kl=uniform_kl,
    )
    sums, factors = sum_rows(student, rows, None if topk is None else topk.targets, terms)
    forward = TileForward(
        factors.objective,
        rows.labels,
        label_logit,
        rest,
        peak,
        total,
        topk,
        factors.call,
        call_logit,
        factors.unsure,
        entropy,
    )
    return sums, forward


def _probabilities(logits: Tensor, peak: Tensor, total: Tensor) -> Tensor:
    """[n, k] softmax at cells with logits [n, k]."""
    return (logits - peak[:, None]).exp() / total[:, None]


def _entropy(rest: NonTopK, topk: TopKForward | None, peak: Tensor, total: Tensor) -> Tensor:
    """[n] entropy of the student over all its columns, in nats."""
    assert rest.moment is not None
    moment = (rest.peak - peak).exp() * (rest.moment + (rest.peak - peak) * rest.total)
    if topk is not None:
        above = (topk.logits - peak[:, None]).masked_fill(~topk.targets.valid, -torch.inf).exp()
        moment = moment + torch.xlogy(above, above).sum(1)
    return total.log() - moment / total


def _with_topk(rest: NonTopK, topk: TopKForward) -> tuple[Tensor, Tensor, Tensor]:
    """Argmax [n] (ties to the lowest id), peak [n] and total [n] of all logits."""
    valid, ids = topk.targets.valid, topk.targets.ids
    logits = topk.logits.masked_fill(~valid, -torch.inf)
    best = logits.amax(1)
    no_id = torch.iinfo(ids.dtype).max
    best_id = torch.where(valid & (logits == best[:, None]), ids, no_id).amin(1)
    lowest = torch.where(best == rest.peak, rest.argmax.minimum(best_id), rest.argmax)
    peak = rest.peak.maximum(best)
    total = rest.total * (rest.peak - peak).exp() + (logits - peak[:, None]).exp().sum(1)
    return torch.where(best > rest.peak, best_id, lowest), peak, total


def _cross_entropy(topk: TopKForward, rest: NonTopK, peak: Tensor, log_total: Tensor) -> Tensor:
    """[n] cross-entropy of the sparse targets and their bucket."""
    targets = topk.targets
    nll = log_total[:, None] + (peak[:, None] - topk.logits)
    inside = torch.where(targets.mass > 0, targets.mass * nll, 0).sum(1)
    tail_nll = log_total + (peak - rest.peak) - rest.total.log()
    return inside + torch.where(targets.tail > 0, targets.tail * tail_nll, 0)


def differentiate_(
    tile: Tensor,
    live: Tensor,
    forward: TileForward,
    head: Head,
    terms: LossTerms,
    kernels: TileKernels,
) -> Tensor:
    """The gradient [m, V] with respect to `hidden @ weight.T` of the rows `live` of a tile.

    The formula stands in the module's docstring; softcap and scale of the head multiply it by the
    chain rule.

    Args:
        forward: of the live rows.
    """
    rest, call = forward.rest, forward.call
    factor = forward.factor if head.scale is None else forward.factor * head.scale
    share = (rest.peak - forward.peak).exp() / forward.total
    on_label, u = torch.full_like(factor, terms.w), torch.full_like(factor, 1 - terms.w)
    on_all, on_tail = on_label, torch.zeros_like(factor)
    if forward.topk is not None and terms.w < 1:
        targets = forward.topk.targets
        on_all = on_label + u * (targets.mass.sum(1) + targets.tail)
        on_tail = torch.where(targets.tail > 0, u * targets.tail / rest.total, 0)
    if call is not None:
        on_all, on_label = (
            torch.where(call.own, call.on_all, on_all),
            torch.where(call.own, call.on_label, on_label),
        )
        u, on_tail = u.masked_fill(call.own, 0), on_tail.masked_fill(call.own, 0)
    at_label = -on_label * factor * _slope(forward.label_logit, head.softcap)
    weight = factor * (on_all * share - on_tail)
    unsure = log_weight = None
    if forward.unsure is not None and forward.entropy is not None:
        unsure = forward.unsure if head.scale is None else forward.unsure * head.scale
        log_weight = unsure * share
        log_share = (rest.peak - forward.peak) - forward.total.log()
        weight = weight + log_weight * (log_share + forward.entropy)
    grad_terms = GradTerms(rest.peak, weight, forward.labels, at_label, head.softcap, log_weight)
    gradient = kernels.differentiate_(tile, live, grad_terms)
    if forward.topk is not None:
        _put_topk_(gradient, forward, factor * on_all, factor * u, unsure, at_label, head.softcap)
    if call is not None and terms.delegation is not None and forward.call_logit is not None:
        at_call = factor * call.on_call * _slope(forward.call_logit, head.softcap)
        gradient[:, terms.delegation.column] = at_call.to(gradient.dtype)
    return gradient


def _put_topk_(
    gradient: Tensor,
    forward: TileForward,
    on_all: Tensor,
    on_teacher: Tensor,
    unsure: Tensor | None,
    at_label: Tensor,
    softcap: float | None,
) -> None:
    """Write the gradient's top-k cells; a filler cell writes the same as the row's first cell."""
    assert forward.topk is not None
    targets, logits = forward.topk.targets, forward.topk.logits
    mass = torch.where(targets.valid, targets.mass, targets.mass[:, :1])
    probability = _probabilities(logits, forward.peak, forward.total)
    cells = on_all[:, None] * probability - on_teacher[:, None] * mass
    if unsure is not None and forward.entropy is not None:
        surprise = torch.xlogy(probability, probability) + probability * forward.entropy[:, None]
        cells = cells + unsure[:, None] * surprise
    cells = cells * _slope(logits, softcap)
    cells = cells + at_label[:, None] * (targets.ids == forward.labels[:, None])
    gradient.scatter_(1, targets.ids, cells.to(gradient.dtype))


def _slope(logit: Tensor, softcap: float | None) -> Tensor:
    """Derivative of softcap * tanh(x / softcap) with respect to x, from the capped logit."""
    if softcap is None:
        return torch.ones_like(logit)
    return 1 - (logit / softcap).square()
