"""`cascade_aware_loss`: check the arguments and run the implementation chosen by name.

Dimension letters: N rows, k stored cells of a teacher row, V student vocabulary, H hidden width.
"""

import os
from dataclasses import replace
from importlib.util import find_spec
from typing import Literal, get_args

import torch
from torch import Tensor

from caskd.store.errors import UsageError
from caskd.train.delegation import DelegateRows, Delegation
from caskd.train.loss.checks import (
    check_columns,
    check_confidence,
    check_teacher,
    check_values,
)
from caskd.train.loss.dense import dense_loss
from caskd.train.loss.fused import FusedCall, fused_label_stats, fused_loss
from caskd.train.loss.kernel_check import kernels_agree
from caskd.train.loss.mask import IGNORE_LABEL, keep_mask
from caskd.train.loss.types import Head, LossRows, LossSums, LossTerms, TeacherRows
from caskd.train.objectives import (
    TAILS,
    Confidence,
    MaskRule,
    Objective,
    Tail,
    resolve_objective,
)

Impl = Literal["auto", "torch", "triton", "dense"]

_TILE_BYTES = {"cpu": 64 << 20, "cuda": 2 << 30}
"""Size of a tile of float32 logits. A larger tile updates the weight gradient less often, and on a
GPU saves some hundred kernel launches; a smaller one fits the caches better."""

_TILE_SHARE = 32
"""A tile is at most 1/32 of a GPU's memory."""

_MOST_ROWS = {"cpu": 4096, "cuda": 8192}


def cascade_aware_loss(
    hidden: Tensor,
    lm_head_weight: Tensor,
    labels: Tensor,
    teacher: TeacherRows | None,
    *,
    objective: str | Objective,
    w: float | None = None,
    tail: Tail = "bucket",
    bias: Tensor | None = None,
    logit_softcap: float | None = None,
    logit_scale: float | None = None,
    row_weights: Tensor | None = None,
    keep: Tensor | None = None,
    delegation: Delegation | None = None,
    delegate: DelegateRows | None = None,
    confidence: Confidence | None = None,
    impl: Impl = "auto",
    tile_rows: int | None = None,
) -> LossSums:
    """Sums of the cascade-aware objective (arXiv 2406.00060) over rows.

    Every result is a sum over rows. Divide `loss` by a count that does not depend on how the batch
    was split, then call backward. The fused implementations compute the gradient in the forward, so
    they can be backpropagated once; `impl="dense"` is plain autograd.

    Args:
        hidden: [N, H] the student's last hidden states, each predicting its row's label.
        lm_head_weight: [V, H]; used in the forward only. Without `requires_grad` its gradient is
            neither computed nor allocated; the same holds for `hidden`.
        labels: [N] integer ids; a row with -100 counts in nothing.
        teacher: the stored rows; None is allowed where the objective needs no teacher.
        objective: a name in `caskd.train.objectives.OBJECTIVES`, or an `Objective`.
        w: weight of the label term in [0, 1]; None is the objective's default.
        tail: how to treat the teacher's mass outside its top-k. `bucket`: it is the target of the
            student's mass outside the top-k, as one more class. `renormalise`: the top-k is scaled
            to sum to one. `drop`: it is ignored. `none`: the targets exp(topk_logits - logsumexp)
            sum to one already, as in sampled stores (shares of draws, tail mass 0).
        bias: [V] of the head.
        logit_softcap: logits become softcap * tanh(logits / softcap), after the scale.
        logit_scale: factor of the logits, bias included.
        row_weights: [N] constant factor of each row's loss; masks and counts ignore it.
        keep: [N] bool, the caller's mask, which replaces the objective's rule; random-* objectives
            have no rule and need it.
        delegation: the CALL column among the V, which is outside every normaliser except on
            delegated rows (arXiv 2602.12005); None if the head has none.
        delegate: what its choice of rows reads of each row.
        confidence: also train the student to be unsure where it is wrong; None: do not. Not with
            `delegation`, and not with `impl="triton"`.
        impl: `dense` keeps [N, V] logits; `torch` and `triton` are fused, `triton` for CUDA
            devices; `auto` is `triton` where a trial shows that it works, else `torch`.
        tile_rows: rows of one tile of the fused loss; None fits them to the device.

    Returns:
        Sums and counts, in float32 (float64 for float64 inputs).

    Raises:
        UsageError: an argument has an unknown value, a wrong shape or range, or a teacher field
            that the objective needs is missing.
    """
    chosen = resolve_objective(objective, w)
    if chosen.matches_spans:
        raise UsageError(
            f"objective {objective!r}: matches spans of bytes, which cascade_aware_loss does not "
            "have; expected an objective over tokens; call caskd.train.loss.span_loss, or run "
            "caskd train"
        )
    own_rule = _own_rule(objective, chosen, keep)
    chosen = Objective(own_rule, chosen.w)
    check_choices(tail, impl, tile_rows)
    check_teacher(objective, chosen, teacher)
    if confidence is not None:
        check_confidence(confidence, delegation, teacher, impl)
    weights = None if row_weights is None else row_weights.detach()
    rows = LossRows(labels.long(), teacher, weights, delegate)
    check_columns(hidden, lm_head_weight, bias, rows, keep)
    check_values(rows, tail, len(lm_head_weight))

    terms = LossTerms(own_rule, chosen.w, tail, delegation, confidence)
    if (
        terms.keeps_all_rows
    ):  # a row that the mask drops may be delegated, or be one to be unsure of
        rows, keep = replace(rows, keep=keep), None
    index = _rows_that_can_count(rows, chosen, keep, masks=not terms.keeps_all_rows)
    if own_rule == "teacher" and not terms.keeps_all_rows:  # `index` has applied it already
        terms = replace(terms, rule="all")
    head = Head(lm_head_weight, bias, logit_softcap, logit_scale)
    if impl == "dense":
        dtype = compute_dtype(hidden, lm_head_weight)
        sums = dense_loss(hidden[index], head, rows.take(index), terms, dtype)
    else:
        call = fused_call(hidden, head, rows, index, terms, impl=impl, tile_rows=tile_rows)
        sums = fused_loss(hidden, head, call)
    return _with_row_counts(sums, rows)


@torch.no_grad()
def student_right(
    hidden: Tensor, head: Head, labels: Tensor, *, tile_rows: int | None = None
) -> Tensor:
    """[N] bool: whether the student's argmax is the label, as the loss of these rows will find it.

    Args:
        hidden: [N, H].
        labels: [N]; a row with -100 is never right.
    """
    index = torch.arange(len(labels), device=labels.device)
    counted = labels != IGNORE_LABEL
    rows, terms = (
        LossRows(labels.masked_fill(~counted, 0), None, None),
        LossTerms("all", 1.0, "none"),
    )
    call = fused_call(hidden, head, rows, index, terms, impl="auto", tile_rows=tile_rows)
    return counted & (fused_label_stats(hidden, head, call)[1] == labels)


def fused_call(
    hidden: Tensor,
    head: Head,
    rows: LossRows,
    index: Tensor,
    terms: LossTerms,
    *,
    impl: str,
    tile_rows: int | None,
) -> FusedCall:
    """The arguments of the fused loss: kernels, dtype and tiles that fit the device."""
    return FusedCall(
        rows=rows,
        index=index,
        terms=terms,
        softcap=head.softcap,
        scale=head.scale,
        dtype=compute_dtype(hidden, head.weight),
        triton=terms.confidence is None and _uses_triton(impl, hidden.device),
        tile_rows=tile_rows or fitting_tile_rows(len(head.weight), hidden.device),
        wanted=_wanted_gradients(hidden, head.weight, head.bias),
    )


def _own_rule(given: str | Objective, objective: Objective, keep: Tensor | None) -> MaskRule:
    """The mask rule that the loss applies; `all` where the caller passes the mask."""
    if keep is not None:
        return "all"
    if objective.rule == "given":
        raise UsageError(
            f"objective {given!r}: keep is None; expected a mask; pass the mask, [N] bool, or "
            "choose an objective that computes its own"
        )
    return objective.rule


def _rows_that_can_count(
    rows: LossRows, objective: Objective, keep: Tensor | None, *, masks: bool
) -> Tensor:
    """[M] ascending: rows that may count, as far as is known before the student's forward.

    Args:
        masks: drop rows that a teacher-only mask drops.
    """
    counted = rows.labels != IGNORE_LABEL
    if keep is not None:
        counted = counted & keep
    if rows.teacher is not None:
        if objective.needs_teacher:
            counted = counted & rows.teacher.present()
        if masks and objective.rule == "teacher":
            counted = counted & keep_mask(None, rows.teacher.argmax, rows.labels, "teacher")
    return counted.nonzero().squeeze(1)


def _with_row_counts(sums: LossSums, rows: LossRows) -> LossSums:
    num_rows = (rows.labels != IGNORE_LABEL).sum()
    if rows.teacher is None:
        return replace(sums, num_rows=num_rows)
    correct = rows.teacher.present() & (rows.teacher.argmax == rows.labels)
    return replace(sums, num_rows=num_rows, teacher_correct=correct.sum())


def compute_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """The dtype of the products: autocast's where it is enabled, else the wider input's."""
    device = hidden.device.type
    dtype = torch.promote_types(hidden.dtype, weight.dtype)
    if torch.is_autocast_enabled(device) and dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return dtype


def _wanted_gradients(
    hidden: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[bool, bool, bool]:
    if not torch.is_grad_enabled():
        return False, False, False
    return hidden.requires_grad, weight.requires_grad, bias is not None and bias.requires_grad


def _uses_triton(impl: str, device: torch.device) -> bool:
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    is_installed = find_spec("triton") is not None
    if impl == "auto":
        return is_installed and device.type == "cuda" and kernels_agree(device)
    if impl == "triton" and not (is_installed and (device.type == "cuda" or interpreted)):
        raise UsageError(
            f"impl='triton': got {device.type} tensors and triton "
            f"{'' if is_installed else 'not '}installed; expected the triton package and a CUDA "
            "device; use impl='auto'"
        )
    return impl == "triton"


def fitting_tile_rows(vocab_size: int, device: torch.device) -> int:
    """Rows n of a tile of float32 logits [n, V] that fits the device."""
    most = _MOST_ROWS.get(device.type, _MOST_ROWS["cpu"])
    return max(128, min(most, tile_bytes(device) // (4 * vocab_size) // 64 * 64))


def tile_bytes(device: torch.device) -> int:
    """Bytes of a tile of float32 logits that fits the device."""
    if device.type != "cuda":
        return _TILE_BYTES.get(device.type, 512 << 20)
    memory = torch.cuda.get_device_properties(device).total_memory
    return min(_TILE_BYTES["cuda"], memory // _TILE_SHARE)


def check_choices(tail: str, impl: str, tile_rows: int | None) -> None:
    if tail not in TAILS:
        raise UsageError(
            f"tail {tail!r}: unknown; expected one of {', '.join(TAILS)}; choose one of these"
        )
    if impl not in get_args(Impl):
        raise UsageError(
            f"impl {impl!r}: unknown; expected one of {', '.join(get_args(Impl))}; choose one of "
            "these"
        )
    if tile_rows is not None and tile_rows < 1:
        raise UsageError(f"tile_rows {tile_rows}: expected at least 1; omit it to fit the device")
