"""The teacher's side of the loss, and the tally of a set of rows; shared by every implementation.

Dimension letters: N rows, k stored cells of a teacher row, V student vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from caskd.store.errors import UsageError
from caskd.train.loss_types import LossRows, LossSums, LossTerms, TeacherRows
from caskd.train.objectives import Tail, keep_mask


@dataclass(frozen=True, eq=False)
class Targets:
    """Sparse target distributions: `mass` on `ids`, and `tail` on everything else together.

    Filler cells repeat the row's first id, so that overwriting a row's cells is harmless; `valid`
    says which cells count, and `mass` is 0 elsewhere.
    """

    ids: Tensor
    """[N, k] int64."""
    mass: Tensor
    """[N, k]."""
    valid: Tensor
    """[N, k] bool."""
    tail: Tensor
    """[N] target of the (k+1)-th bucket; 0 where the tail mode has none."""
    tail_mass: Tensor
    """[N] what the teacher left outside its top-k, whatever the tail mode makes of it."""
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
    """The target distributions of rows that have a top-k.

    Probabilities are exp(topk_logits - logsumexp). Storage rounds logits, so that the top-k and
    `tail_mass` need not sum to one: the cells are scaled to 1 - tail_mass (`bucket`, `drop`), to
    one (`renormalise`), or left as they are (`none`, for targets that are weights already).

    Args:
        vocab_size: the student's V. Its columns outside a row's top-k, also those beyond the
            teacher's vocabulary, belong to the tail.
        dtype: float32, or float64.

    Raises:
        UsageError: an id is outside the student's vocabulary, or twice in a row under `bucket`.
    """
    ids, logits, num_kept, logsumexp, tail_mass = _distribution(teacher)
    valid = torch.arange(ids.shape[1], device=ids.device) < num_kept[:, None]
    present = num_kept > 0
    logprobs = logits.to(dtype) - logsumexp.to(dtype)[:, None]
    mass = logprobs.exp().masked_fill(~valid, 0)
    left_out = tail_mass.to(dtype).clamp(0, 1) * present
    if tail != "none":
        total = mass.sum(1).masked_fill(~present, 1)
        wanted = torch.ones_like(left_out) if tail == "renormalise" else 1 - left_out
        mass = mass * (wanted / total)[:, None]
    ids = torch.where(valid, ids.long(), ids[:, :1].long())
    ids = ids.masked_fill(~present[:, None], 0)
    _check_ids(ids, valid, vocab_size, distinct=tail == "bucket")
    bucket = left_out if tail == "bucket" else torch.zeros_like(left_out)
    return Targets(ids, mass, valid, bucket, left_out, present)


def _distribution(teacher: TeacherRows) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    columns = (
        teacher.topk_ids,
        teacher.topk_logits,
        teacher.num_kept,
        teacher.logsumexp,
        teacher.tail_mass,
    )
    ids, logits, num_kept, logsumexp, tail_mass = columns
    assert ids is not None
    assert logits is not None
    assert num_kept is not None
    assert logsumexp is not None
    assert tail_mass is not None
    return ids, logits, num_kept, logsumexp, tail_mass


def _check_ids(ids: Tensor, valid: Tensor, vocab_size: int, *, distinct: bool) -> None:
    """Ids index the student's logits, and a bucket's cells are taken out of its tail once each."""
    if ids.numel() == 0:
        return
    low, high = (int(bound) for bound in torch.stack(ids.aminmax()).tolist())
    if low < 0 or high >= vocab_size:
        raise UsageError(
            f"teacher ids run from {low} to {high}, expected 0 to {vocab_size - 1} (the student's "
            f"head); use a student with the teacher's vocabulary"
        )
    if distinct:
        filler = -1 - torch.arange(ids.shape[1], device=ids.device)
        ordered = torch.where(valid, ids, filler).sort(dim=1).values
        if bool((ordered[:, 1:] == ordered[:, :-1]).any()):
            raise UsageError(
                "a teacher row has the same id twice, which tail='bucket' cannot take out of the "
                "student's tail; use tail='none' for sampled targets"
            )


@dataclass(frozen=True, eq=False)
class RowFigures:
    """What one forward says of each row; `tally` turns it into sums."""

    argmax: Tensor
    """[N] the student's, ties to the lowest id."""
    label_nll: Tensor
    """[N] -log p_S(label)."""
    teacher_cross_entropy: Tensor | None
    """[N] None where the teacher's distribution was not given."""


def tally(
    figures: RowFigures, rows: LossRows, targets: Targets | None, terms: LossTerms
) -> tuple[LossSums, Tensor]:
    """The sums of these rows and the factor of each one's loss, [N], 0 where the mask drops it.

    `num_rows` and `teacher_correct` stay 0: they are over rows that never get here, too.
    """
    teacher_argmax = None if rows.teacher is None else rows.teacher.argmax
    keep = keep_mask(figures.argmax, teacher_argmax, rows.labels, terms.rule)
    factor = keep.to(figures.label_nll.dtype)
    if rows.weights is not None:
        factor = factor * rows.weights.to(factor.dtype)
    # Where the factor is 0 the loss is left out, not multiplied: inf * 0 must not reach the sum.
    row_loss = terms.w * figures.label_nll
    zero = torch.zeros((), device=factor.device, dtype=factor.dtype)
    cross_entropy, kl, tail_mass, num_distilled = zero, zero, zero, zero.long()
    if targets is not None and figures.teacher_cross_entropy is not None:
        row_loss = row_loss + (1 - terms.w) * figures.teacher_cross_entropy
        measured = figures.teacher_cross_entropy.detach()
        cross_entropy = torch.where(targets.present, measured, 0).sum()
        kl = torch.where(targets.present, measured + targets.negative_entropy(), 0).sum()
        tail_mass = targets.tail_mass.sum()
        num_distilled = targets.present.sum()
    loss = torch.where(factor != 0, factor * row_loss, 0).sum()
    sums = LossSums(
        loss=loss,
        label_nll=figures.label_nll.detach().sum(),
        teacher_cross_entropy=cross_entropy,
        teacher_kl=kl,
        tail_mass=tail_mass,
        num_rows=zero.long(),
        num_kept=keep.sum(),
        num_measured=torch.full_like(zero, len(keep), dtype=torch.int64),
        num_distilled=num_distilled,
        student_correct=(figures.argmax == rows.labels).sum(),
        teacher_correct=zero.long(),
    )
    return sums, factor
