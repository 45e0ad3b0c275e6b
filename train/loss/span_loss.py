"""Approximate likelihood matching: the loss of a student whose tokenizer is not the teacher's.

Minixhofer et al., arXiv 2503.20083. Teacher and student tokens of a response are grouped into spans
of equal bytes. With L_T and L_S the sums of a span's log-probabilities (nats), a = L_T/100 - e,
b = L_S/100 - e and e = 1e-6, the loss of a kept span is

    w (-L_S) + (1 - w) 100 * BCE(exp(a), exp(b)),   BCE(p, q) = -[p log q + (1 - p) log(1 - q)]

Its derivative with respect to each log-probability in the span is the negative of

    w + (1 - w) (exp(a) - exp(b)) / (1 - exp(b))

so the gradient is a weighted cross-entropy of the student's own tokens. It takes two passes: the
first computes L_S, the second is the fused cross-entropy with these row weights.

A span of one token of both models may have the teacher's top-k in the student's ids. Its loss is
then that of `cascade_aware_loss` with a tail bucket: the cross-entropy of the top-k takes the place
of the matching term.

Dimension letters: N rows (student tokens), C spans, P rows with a top-k, V student vocabulary, H
hidden width.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from caskd.train.loss.api import Impl, check_choices, compute_dtype, fused_call
from caskd.train.loss.dense import dense_logits, dense_loss
from caskd.train.loss.fused import fused_label_stats, fused_loss
from caskd.train.loss.types import Head, LossRows, LossSums, LossTerms, TeacherRows
from caskd.train.objectives import AnyRule, Objective

SCALE = 100.0
"""Temperature of the likelihoods, and factor of the loss: the gradient of both terms of the loss
then has one scale."""
OFFSET = 1e-6
"""Keeps exp(L / SCALE) below 1."""


@dataclass(frozen=True, eq=False)
class MappedRows:
    """Rows whose span is one token of both models, with the teacher's top-k in the student's ids.

    The mass of ids that the student does not have is in `tail_mass`.
    """

    row: Tensor
    """[P] int64, ascending: which of the N rows."""
    teacher: TeacherRows
    """[P], each with at least one cell; `argmax` is not read."""


@dataclass(frozen=True, eq=False)
class TeacherSpans:
    """The spans of a batch's student tokens, and the teacher's values of each."""

    of_row: Tensor
    """[N] int64 span of each row, in [0, C); C where the row belongs to none."""
    log_likelihood: Tensor
    """[C] L_T: sum of label_logit - logsumexp over the span's teacher rows, nats."""
    correct: Tensor
    """[C] bool: the label is the teacher's argmax in all of the span's teacher rows."""
    mapped: MappedRows | None = None
    """None matches likelihoods alone."""


def span_sums(values: Tensor, spans: TeacherSpans) -> Tensor:
    """Sums [C] of values [N] over the rows of each span, in float64."""
    sums = values.new_zeros(len(spans.correct) + 1, dtype=torch.float64)
    # Rows outside every span are summed into one more cell, which is dropped.
    return sums.index_add_(0, spans.of_row, values.double())[:-1]


def span_keep(student_correct: Tensor, spans: TeacherSpans, rule: AnyRule) -> Tensor:
    """The mask of Cascade-Aware Training over spans [C].

    Args:
        student_correct: [N] bool of each row.
        rule: as of `keep_mask`. A model is right in a span when all its labels there are its
            argmax.
    """
    wrong = span_sums((~student_correct).double(), spans)
    return {
        "all": torch.ones_like(spans.correct),
        "teacher": spans.correct,
        "student": wrong == 0,
        "either": spans.correct | (wrong == 0),
    }[rule]


def matching_loss(teacher: Tensor, student: Tensor, w: float) -> tuple[Tensor, Tensor]:
    """Loss [C] of each span, and the weight [C] of each of its student tokens' -log p.

    Args:
        teacher: [C] L_T, float64.
        student: [C] L_S, float64.
        w: of -L_S; the matching term has 1 - w.
    """
    a, b = teacher / SCALE - OFFSET, student / SCALE - OFFSET
    rest_a, rest_b = -torch.expm1(a), -torch.expm1(b)
    matching = -SCALE * (a.exp() * b + rest_a * rest_b.log())
    weight = w + (1 - w) * (rest_b - rest_a) / rest_b
    return -w * student + (1 - w) * matching, weight


def span_loss(
    hidden: Tensor,
    lm_head_weight: Tensor,
    labels: Tensor,
    spans: TeacherSpans,
    *,
    objective: Objective,
    bias: Tensor | None = None,
    logit_softcap: float | None = None,
    logit_scale: float | None = None,
    keep: Tensor | None = None,
    impl: Impl = "auto",
    tile_rows: int | None = None,
) -> LossSums:
    """Sums of a span objective over a batch of whole examples.

    With one tokenizer for both models every span is one token; masks then are those of
    `cascade_aware_loss`, and with w = 1 so are loss and gradient, bit for bit.

    Args:
        hidden: [N, H] the student's last hidden states, each predicting its row's label.
        lm_head_weight: [V, H].
        labels: [N] the student's own tokens.
        spans: of the rows. All rows of a span must be in the batch.
        objective: mask rule, and the label weight w.
        bias: [V] of the head.
        logit_softcap: as of `cascade_aware_loss`.
        logit_scale: as of `cascade_aware_loss`.
        keep: [C] bool, the caller's mask, which replaces the objective's rule.
        impl: as of `cascade_aware_loss`.
        tile_rows: as of `cascade_aware_loss`.

    Returns:
        Sums and counts. `num_rows`, `num_kept`, `num_distilled` and `teacher_correct` count spans;
        `num_measured` and `student_correct` count rows. `teacher_cross_entropy` is the sum of the
        matching term, and `teacher_kl` the same less its value for a perfect student.

    Raises:
        UsageError: an argument has an unknown value.
    """
    check_choices("none", impl, tile_rows)
    head = Head(lm_head_weight, bias, logit_softcap, logit_scale)
    if objective.w == 1:
        spans = replace(spans, mapped=None)
    if impl == "dense":
        logits = dense_logits(hidden, head, compute_dtype(hidden, lm_head_weight))
        nll = logits.logsumexp(1) - logits.gather(1, labels[:, None]).squeeze(1)
        argmax = logits.detach().argmax(1)
        sums, _, keep = _summed(nll, argmax == labels, labels, spans, objective, keep)
        return _with_topk(sums, hidden, head, labels, spans, keep, objective, impl, tile_rows)
    rows = LossRows(labels, None, None)
    index = torch.arange(len(labels), device=labels.device)
    terms = LossTerms("all", 1.0, "none")
    call = fused_call(hidden, head, rows, index, terms, impl=impl, tile_rows=tile_rows)
    nll, argmax = fused_label_stats(hidden, head, call)
    sums, weights, keep = _summed(nll, argmax == labels, labels, spans, objective, keep)
    # Every row goes through the head, as in `cascade_aware_loss`: equal tiles, equal sums.
    weighted = replace(call, rows=LossRows(labels, None, weights.to(nll.dtype)))
    if spans.mapped is not None:
        others = torch.ones_like(labels, dtype=torch.bool)
        others[spans.mapped.row] = False
        weighted = replace(weighted, index=others.nonzero().squeeze(1))
    loss = fused_loss(hidden, head, weighted).loss
    if objective.w == 1:
        return replace(sums, loss=loss)
    sums = replace(sums, loss=loss + (sums.loss - loss).detach())
    return _with_topk(sums, hidden, head, labels, spans, keep, objective, impl, tile_rows)


def _with_topk(
    sums: LossSums,
    hidden: Tensor,
    head: Head,
    labels: Tensor,
    spans: TeacherSpans,
    keep: Tensor,
    objective: Objective,
    impl: Impl,
    tile_rows: int | None,
) -> LossSums:
    """The sums, with the loss of the spans that have a top-k added."""
    if spans.mapped is None:
        return sums
    index = spans.mapped.row
    own, kept = hidden[index], keep[spans.of_row[index]]
    rows = LossRows(labels[index], spans.mapped.teacher, kept.to(sums.loss.dtype))
    terms = LossTerms("all", objective.w, "bucket")
    if impl == "dense":
        found = dense_loss(own, head, rows, terms, compute_dtype(own, head.weight))
    else:
        every = torch.arange(len(index), device=index.device)
        call = fused_call(own, head, rows, every, terms, impl=impl, tile_rows=tile_rows)
        found = fused_loss(own, head, call)
    names = ("loss", "teacher_cross_entropy", "teacher_kl")
    return replace(sums, **{name: getattr(sums, name) + getattr(found, name) for name in names})


def _summed(
    nll: Tensor,
    correct: Tensor,
    labels: Tensor,
    spans: TeacherSpans,
    objective: Objective,
    keep: Tensor | None,
) -> tuple[LossSums, Tensor, Tensor]:
    """The sums of a batch without the loss of spans that have a top-k, the weight [N] of each row's
    -log p in the gradient, and the mask [C]."""
    if keep is None:
        keep = span_keep(correct, spans, objective.rule)
    student = -span_sums(nll, spans)
    loss, weight = matching_loss(spans.log_likelihood, student, objective.w)
    matching, _ = matching_loss(spans.log_likelihood, student.detach(), 0.0)
    perfect, _ = matching_loss(spans.log_likelihood, spans.log_likelihood, 0.0)
    likened = torch.ones_like(keep)  # spans whose likelihood is matched
    if spans.mapped is not None:
        likened[spans.of_row[spans.mapped.row]] = False
    matching, perfect = (torch.where(likened, values, 0) for values in (matching, perfect))
    kept_weight = torch.where(keep & likened, weight.detach(), 0)
    none = kept_weight.new_zeros(1)
    count = torch.full((), len(keep), dtype=torch.int64, device=nll.device)
    zero = torch.zeros_like(count)
    distilled = count if objective.w < 1 else zero
    sums = LossSums(
        loss=torch.where(keep & likened, loss, 0).sum().to(nll.dtype),
        label_nll=nll.detach().sum(),
        teacher_cross_entropy=matching.sum() if objective.w < 1 else none.sum(),
        teacher_kl=(matching - perfect).sum() if objective.w < 1 else none.sum(),
        tail_mass=none.sum(),
        acceptance_low=none.sum(),
        acceptance_high=none.sum(),
        unsure_kl=none.sum(),
        num_rows=count,
        num_kept=keep.sum(),
        num_measured=torch.full_like(count, len(labels)),
        num_distilled=distilled,
        student_correct=correct.sum(),
        teacher_correct=spans.correct.sum(),
        num_unsure=zero,
    )
    return sums, torch.cat([kept_weight, none])[spans.of_row], keep
