"""The teacher's targets, and the sums of a set of rows; shared by every implementation.

Dimension letters: N rows, k stored cells of a teacher row, V student vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from caskd.models.decoding import acceptance_bounds
from caskd.train.delegation import (
    CELLS,
    CallTerms,
    Delegation,
    call_terms,
    cells_of,
    chosen_rows,
)
from caskd.train.loss.mask import keep_mask
from caskd.train.loss.types import LossRows, LossSums, LossTerms, TeacherRows
from caskd.train.objectives import FACTS, LEARNS_TO_DEFER, ConfidenceRule, DelegateRule, Tail


@dataclass(frozen=True, eq=False)
class Targets:
    """Sparse target distributions: `mass` on `ids`, and `tail` on all other ids together.

    `valid` marks the cells that count; `mass` is 0 elsewhere. Filler cells repeat the row's first
    id, so that scattering a row's cells is harmless.
    """

    ids: Tensor
    """[N, k] int64."""
    mass: Tensor
    """[N, k]."""
    valid: Tensor
    """[N, k] bool."""
    tail: Tensor
    """[N] target of the (k+1)-th bucket; 0 where the tail mode has no bucket."""
    tail_mass: Tensor
    """[N] the teacher's mass outside its top-k, for any tail mode."""
    present: Tensor
    """[N] bool: rows that have a teacher row."""

    def negative_entropy(self) -> Tensor:
        """[N] sum of t log t, the bucket included."""
        cells = torch.xlogy(self.mass, self.mass).sum(1)
        return cells + torch.xlogy(self.tail, self.tail)

    def take(self, index: Tensor) -> "Targets":
        """The rows at `index` [n]."""
        columns = (self.ids, self.mass, self.valid, self.tail, self.tail_mass, self.present)
        return Targets(*(column[index] for column in columns))


def teacher_targets(
    teacher: TeacherRows, tail: Tail, vocab_size: int, dtype: torch.dtype
) -> Targets:
    """Target distributions of rows that have a top-k.

    Probabilities are exp(topk_logits - logsumexp). Storage rounds logits, so the top-k and
    `tail_mass` may not sum to one. The cells are scaled to 1 - tail_mass (`bucket`, `drop`), to
    one (`renormalise`), or stay as they are (`none`, for sampled targets, which are shares of
    draws).

    Args:
        vocab_size: the student's V. Columns outside a row's top-k belong to the tail, also those
            beyond the teacher's vocabulary. A row that keeps all V has no tail.
        dtype: float32, or float64.
    """
    assert teacher.topk_logits is not None
    assert teacher.num_kept is not None
    assert teacher.logsumexp is not None
    assert teacher.tail_mass is not None
    ids, valid = kept_cells(teacher)
    present = teacher.present()
    mass = stored_probabilities(teacher, valid, dtype)
    left_out = teacher.tail_mass.to(dtype).clamp(0, 1)
    left_out = left_out * (present & (teacher.num_kept < vocab_size))
    if tail != "none":
        total = mass.sum(1).masked_fill(~present, 1)
        wanted = torch.ones_like(left_out) if tail == "renormalise" else 1 - left_out
        mass = mass * (wanted / total)[:, None]
    bucket = left_out if tail == "bucket" else torch.zeros_like(left_out)
    return Targets(ids, mass, valid, bucket, left_out, present)


def kept_cells(teacher: TeacherRows) -> tuple[Tensor, Tensor]:
    """Ids [N, k] int64 and the valid cells [N, k]; filler is the row's first id, or 0 in a row
    without a teacher row."""
    assert teacher.topk_ids is not None
    assert teacher.num_kept is not None
    ids = teacher.topk_ids.long()
    valid = torch.arange(ids.shape[1], device=ids.device) < teacher.num_kept[:, None]
    ids = torch.where(valid, ids, ids[:, :1])
    return ids.masked_fill(~teacher.present()[:, None], 0), valid


@dataclass(frozen=True, eq=False)
class StudentRows:
    """The student's values of each row in one forward; `sum_rows` adds them up.

    A CALL column is in none of them but `log_odds`.
    """

    argmax: Tensor
    """[N] ties to the lowest id."""
    label_nll: Tensor
    """[N] -log p_S(label)."""
    teacher_cross_entropy: Tensor | None
    """[N]; None without a teacher distribution."""
    confidence: Tensor
    """[N] log p_S(argmax)."""
    log_odds: Tensor | None = None
    """[N] logit of the CALL column less the log-sum-exp of all others; None without the column."""
    topk: Tensor | None = None
    """[N, k] p_S of the targets' ids; None without a teacher distribution."""
    uniform_kl: Tensor | None = None
    """[N] KL(p_S || uniform) over the head's columns, log V less the entropy; None where nothing
    reads it."""


@dataclass(frozen=True, eq=False)
class RowFactors:
    """What each row's loss is multiplied by."""

    objective: Tensor
    """[N] 0 where the mask drops the row; a delegated row is never dropped."""
    unsure: Tensor | None
    """[N] of `StudentRows.uniform_kl`; None without a confidence term."""
    call: CallTerms | None
    """Terms of a CALL column."""


def sum_rows(
    student: StudentRows, rows: LossRows, targets: Targets | None, terms: LossTerms
) -> tuple[LossSums, RowFactors]:
    """The sums of these rows, and the factors of each row's loss.

    `num_rows` and `teacher_correct` stay 0, because they also count rows that never get here.
    """
    teacher_argmax = None if rows.teacher is None else rows.teacher.argmax
    keep = keep_mask(student.argmax, teacher_argmax, rows.labels, terms.rule)
    if rows.keep is not None:
        keep = keep & rows.keep
    # Where the factor is 0 the loss is skipped, not multiplied: inf * 0 must not reach the sum.
    row_loss = terms.w * student.label_nll
    zero = torch.zeros((), device=keep.device, dtype=student.label_nll.dtype)
    cross_entropy, kl, tail_mass, num_distilled = zero, zero, zero, zero.long()
    acceptance = (zero, zero)
    if targets is not None and student.teacher_cross_entropy is not None:
        row_loss = row_loss + (1 - terms.w) * student.teacher_cross_entropy
        measured = student.teacher_cross_entropy.detach()
        cross_entropy = torch.where(targets.present, measured, 0).sum()
        kl = torch.where(targets.present, measured + targets.negative_entropy(), 0).sum()
        tail_mass = targets.tail_mass.sum()
        num_distilled = targets.present.sum()
        acceptance = _acceptance(student, rows, targets)
    call = calls = None
    if terms.delegation is not None:
        call, calls = _delegated(student, rows, targets, terms.delegation)
        row_loss = torch.where(call.own, call.loss, row_loss)
        keep = keep | call.own
    factor = keep.to(student.label_nll.dtype)
    if rows.weights is not None:
        factor = factor * rows.weights.to(factor.dtype)
    unsure, unsure_kl, num_unsure = None, zero, zero.long()
    if terms.confidence is not None:
        assert student.uniform_kl is not None
        marked = unsure_rows(terms.confidence.rule, student.argmax, rows)
        unsure = terms.confidence.weight * marked.to(factor.dtype)
        if rows.weights is not None:
            unsure = unsure * rows.weights.to(factor.dtype)
        factor = (1 - terms.confidence.weight) * factor
        unsure_kl = torch.where(marked, student.uniform_kl.detach(), 0).sum()
        num_unsure = marked.sum()
    loss = torch.where(factor != 0, factor * row_loss, 0).sum()
    if unsure is not None and student.uniform_kl is not None:
        loss = loss + torch.where(unsure != 0, unsure * student.uniform_kl, 0).sum()
    sums = LossSums(
        loss=loss,
        label_nll=student.label_nll.detach().sum(),
        teacher_cross_entropy=cross_entropy,
        teacher_kl=kl,
        tail_mass=tail_mass,
        acceptance_low=acceptance[0],
        acceptance_high=acceptance[1],
        unsure_kl=unsure_kl,
        num_rows=zero.long(),
        num_kept=keep.sum(),
        num_measured=torch.full_like(zero, len(keep), dtype=torch.int64),
        num_distilled=num_distilled,
        student_correct=(student.argmax == rows.labels).sum(),
        teacher_correct=zero.long(),
        num_unsure=num_unsure,
        delegation=calls,
    )
    return sums, RowFactors(factor, unsure, call)


@torch.no_grad()
def unsure_rows(rule: ConfidenceRule, student_argmax: Tensor, rows: LossRows) -> Tensor:
    """[N] bool: rows on which the student shall be unsure.

    `gatekeeper`: its argmax is not the label. `cascade-gatekeeper`: nor is it, and the teacher's
    argmax is.
    """
    wrong = student_argmax != rows.labels
    return wrong & _teacher_is_right(rows) if rule == "cascade-gatekeeper" else wrong


@torch.no_grad()
def _acceptance(student: StudentRows, rows: LossRows, targets: Targets) -> tuple[Tensor, Tensor]:
    """Sums of both bounds over rows with a teacher distribution."""
    assert student.topk is not None
    assert rows.teacher is not None
    kept = stored_probabilities(rows.teacher, targets.valid, student.topk.dtype)
    bounds = acceptance_bounds(student.topk, kept)
    low, high = (torch.where(targets.present, bound, 0).sum() for bound in bounds)
    return low, high


def stored_probabilities(teacher: TeacherRows, valid: Tensor, dtype: torch.dtype) -> Tensor:
    """[N, k] the teacher's probabilities as stored, without `teacher_targets`' scale; 0 where not
    `valid` [N, k]."""
    assert teacher.topk_logits is not None
    assert teacher.logsumexp is not None
    logprobs = teacher.topk_logits.to(dtype) - teacher.logsumexp.to(dtype)[:, None]
    return logprobs.exp().masked_fill(~valid, 0)


@torch.no_grad()
def delegation_scores(
    rule: DelegateRule, student: StudentRows, rows: LossRows, targets: Targets | None
) -> Tensor:
    """Score [N] of each row, the largest delegated first; -inf where it is never delegated.

    `loss`: -log p_S(y). `rho`: log p_T(y) - log p_S(y) (Rho-1, the teacher as its reference).
    `gap`: the same where the teacher's argmax is the label and the student's is not.
    `unacceptable`: 1 - p_T(a) / max p_T where the student's argmax a is not the label, with p_T 0
    outside the top-k. `random`: equal scores. `fact-`: -inf also where the corpus marks no fact.
    """
    if rule in FACTS:
        assert rows.delegate is not None
        assert rows.delegate.marked is not None
        scores = delegation_scores(FACTS[rule], student, rows, targets)
        return torch.where(rows.delegate.marked, scores, -torch.inf)
    nll = student.label_nll
    if rule == "random":
        return torch.zeros_like(nll)
    if rule == "loss":
        return nll.clone()
    wrong = student.argmax != rows.labels
    if rule == "unacceptable":
        assert targets is not None
        chosen = (targets.ids == student.argmax[:, None]) & targets.valid
        probability = torch.where(chosen, targets.mass, 0).sum(1)
        distance = 1 - probability / targets.mass.amax(1)
        return torch.where(wrong & (distance > 0), distance, -torch.inf)
    assert rows.delegate is not None
    assert rows.delegate.label_logprob is not None
    excess = rows.delegate.label_logprob.to(nll.dtype) + nll
    if rule == "gap":
        excess = torch.where(wrong & _teacher_is_right(rows), excess, -torch.inf)
    return excess


def _teacher_is_right(rows: LossRows) -> Tensor:
    assert rows.teacher is not None
    return rows.teacher.present() & (rows.teacher.argmax == rows.labels)


def _delegated(
    student: StudentRows, rows: LossRows, targets: Targets | None, delegation: Delegation
) -> tuple[CallTerms, Tensor]:
    """Terms of the rows that train the CALL column, and their sums [NUM_DELEGATION_SUMS]."""
    assert student.log_odds is not None
    rule, nothing = delegation.rule, rows.labels.new_zeros(CELLS)
    if rule in LEARNS_TO_DEFER:
        marked, cells = _teacher_is_right(rows), nothing
        delegated = delegation.defers(student.log_odds.detach(), student.confidence.detach())
    else:
        assert rows.delegate is not None
        found = cells_of(delegation_scores(rule, student, rows, targets))
        marked = delegated = chosen_rows(found, rows.delegate.uniform, delegation.threshold)
        cells = nothing + torch.bincount(found + 1, minlength=CELLS + 1)[1:]
    call = call_terms(rule, student.log_odds, student.label_nll, marked)
    outside = nothing.sum()
    if targets is not None:
        inside = ((targets.ids == student.argmax[:, None]) & targets.valid).any(1)
        outside = (targets.present & ~inside).sum()
    loss = torch.where(delegated, call.loss.detach(), 0).sum()
    sums = torch.stack([delegated.sum().double(), loss.double(), outside.double()])
    return call, torch.cat([sums, cells.double()])
