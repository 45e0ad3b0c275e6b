"""The front door of the loss: arguments are checked here, and an implementation chosen by name.

Dimension letters: N rows, k stored cells of a teacher row, V student vocabulary, H hidden width.
"""

from dataclasses import replace
from typing import Literal, get_args

import torch
from torch import Tensor

from caskd.store.errors import UsageError
from caskd.train.dense_loss import dense_loss
from caskd.train.fused_loss import FusedCall, fused_loss
from caskd.train.loss_types import Head, LossRows, LossSums, LossTerms, TeacherRows
from caskd.train.objectives import (
    IGNORE_LABEL,
    OBJECTIVES,
    TAILS,
    Objective,
    Tail,
    keep_mask,
    resolve_objective,
)

__all__ = ["OBJECTIVES", "LossSums", "TeacherRows", "cascade_aware_loss", "keep_mask"]

Impl = Literal["auto", "torch", "dense"]

_TILE_BYTES = {"cpu": 64 << 20, "cuda": 512 << 20}
"""Size of a tile of float32 logits. A larger one spreads the weight gradient's traffic over more
rows, a smaller one stays nearer to the caches."""


def cascade_aware_loss(
    hidden: Tensor,
    lm_head_weight: Tensor,
    labels: Tensor,
    teacher: TeacherRows | None,
    *,
    objective: str,
    w: float | None = None,
    tail: Tail = "bucket",
    bias: Tensor | None = None,
    logit_softcap: float | None = None,
    logit_scale: float | None = None,
    row_weights: Tensor | None = None,
    keep: Tensor | None = None,
    impl: Impl = "auto",
    tile_rows: int | None = None,
) -> LossSums:
    """Sums of the cascade-aware objective (arXiv 2406.00060) over rows.

    Everything is a sum over rows: divide `loss` by a count that does not depend on how the batch
    was split, then call backward. The fused implementation has made its gradient by then and can be
    backpropagated once; `impl="dense"` is plain autograd.

    Args:
        hidden: [N, H] the student's last hidden states, each predicting its row's label.
        lm_head_weight: [V, H]; used in the forward only. Without `requires_grad` its gradient is
            neither computed nor allocated; the same holds for `hidden`.
        labels: [N] integer ids; -100 marks a row that counts nowhere.
        teacher: the stored rows; None where the objective asks nothing of the teacher.
        objective: a name in `OBJECTIVES`.
        w: weight of the label term in [0, 1]; None is the objective's own.
        tail: what becomes of the teacher's mass outside its top-k. `bucket`: the student's mass out
            there is matched to it as one more class. `renormalise`: the top-k is scaled to sum to
            one. `drop`: left out. `none`: exp(topk_logits - logsumexp) are the targets as they
            stand, ids may repeat, for sampled stores.
        bias: [V] of the head.
        logit_softcap: logits become softcap * tanh(logits / softcap), after the scale.
        logit_scale: factor of the logits, bias included.
        row_weights: [N] factor of each row's loss, a constant; masks and counts ignore it.
        keep: [N] bool, the caller's own mask in place of the objective's rule.
        impl: `dense` keeps [N, V] logits; `torch` is fused; `auto` takes the fastest there is.
        tile_rows: rows of one tile of the fused loss; None fits it to the device.

    Returns:
        Sums and counts, in float32 (float64 for float64 inputs).

    Raises:
        UsageError: an argument is unknown, of the wrong shape or range, or a teacher field that the
            objective needs is missing.
    """
    chosen = resolve_objective(objective, w)
    if keep is not None:
        chosen = Objective("all", chosen.w)
    _check_choices(tail, impl, tile_rows)
    _check_columns(hidden, lm_head_weight, labels, teacher, bias, row_weights, keep)
    _check_teacher(objective, chosen, teacher)
    labels = labels.long()
    _check_labels(labels, len(lm_head_weight))

    rows = LossRows(labels, teacher, None if row_weights is None else row_weights.detach())
    index = _rows_that_can_count(rows, chosen, keep)
    # The teacher's own mask has been applied by now; the rest of it is for the student to say.
    rule = "all" if chosen.rule == "teacher" else chosen.rule
    terms = LossTerms(rule, chosen.w, tail)
    head = Head(lm_head_weight, bias, logit_softcap, logit_scale)
    dtype = _compute_dtype(hidden, lm_head_weight)
    if impl == "dense":
        sums = dense_loss(hidden[index], head, rows.take(index), terms, dtype)
    else:
        sums = fused_loss(
            hidden,
            head,
            FusedCall(
                rows=rows,
                index=index,
                terms=terms,
                softcap=logit_softcap,
                scale=logit_scale,
                dtype=dtype,
                tile_rows=tile_rows or _fitting_tile_rows(len(lm_head_weight), hidden.device),
                wanted=_wanted_gradients(hidden, lm_head_weight, bias),
            ),
        )
    return _with_row_counts(sums, rows)


def _rows_that_can_count(rows: LossRows, objective: Objective, keep: Tensor | None) -> Tensor:
    """[M] ascending: rows that no argument rules out before the student has been asked."""
    counted = rows.labels != IGNORE_LABEL
    if keep is not None:
        counted = counted & keep
    if rows.teacher is not None:
        if objective.needs_teacher:
            counted = counted & rows.teacher.present()
        if objective.rule == "teacher":
            counted = counted & keep_mask(None, rows.teacher.argmax, rows.labels, "teacher")
    return counted.nonzero().squeeze(1)


def _with_row_counts(sums: LossSums, rows: LossRows) -> LossSums:
    num_rows = (rows.labels != IGNORE_LABEL).sum()
    if rows.teacher is None:
        return replace(sums, num_rows=num_rows)
    correct = rows.teacher.present() & (rows.teacher.argmax == rows.labels)
    return replace(sums, num_rows=num_rows, teacher_correct=correct.sum())


def _compute_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """The dtype of the products: autocast's where it is on, else the wider of the two inputs."""
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


def _fitting_tile_rows(vocab_size: int, device: torch.device) -> int:
    budget = _TILE_BYTES.get(device.type, _TILE_BYTES["cuda"])
    return max(128, min(4096, budget // (4 * vocab_size) // 64 * 64))


def _check_choices(tail: str, impl: str, tile_rows: int | None) -> None:
    if tail not in TAILS:
        raise UsageError(f"tail {tail!r} is unknown; choose one of {', '.join(TAILS)}")
    if impl not in get_args(Impl):
        raise UsageError(f"impl {impl!r} is unknown; choose one of {', '.join(get_args(Impl))}")
    if tile_rows is not None and tile_rows < 1:
        raise UsageError(f"tile_rows is {tile_rows}, expected at least 1; leave it out to fit it")


def _check_columns(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    teacher: TeacherRows | None,
    bias: Tensor | None,
    row_weights: Tensor | None,
    keep: Tensor | None,
) -> None:
    """Shapes agree: hidden [N, H], weight [V, H], bias [V], and N of everything else."""
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1]:
        raise UsageError(
            f"hidden is {list(hidden.shape)} and lm_head_weight {list(weight.shape)}, expected "
            "[N, H] and [V, H]; flatten batch and time to N rows"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise UsageError(f"bias is {list(bias.shape)}, expected [{len(weight)}] as the head's rows")
    columns = {"labels": labels, "row_weights": row_weights, "keep": keep}
    if teacher is not None:
        columns |= {f"teacher.{name}": value for name, value in vars(teacher).items()}
    for name, column in columns.items():
        if column is None:
            continue
        wide = name in ("teacher.topk_ids", "teacher.topk_logits")
        if column.ndim != 1 + wide or len(column) != len(hidden):
            shape = f"[{len(hidden)}{', k' * wide}]"
            raise UsageError(
                f"{name} is {list(column.shape)}, expected {shape}: one per row of hidden"
            )
    if keep is not None and keep.dtype != torch.bool:
        raise UsageError(f"keep is {keep.dtype}, expected torch.bool; use row_weights for weights")


def _check_teacher(name: str, objective: Objective, teacher: TeacherRows | None) -> None:
    if objective.needs_teacher and teacher is None:
        raise UsageError(f"objective {name!r} needs teacher rows, got None; pass TeacherRows")
    if teacher is None or not objective.needs_distribution or teacher.has_distribution:
        return
    missing = [field for field, value in vars(teacher).items() if value is None]
    raise UsageError(
        f"objective {name!r} with w={objective.w:g} needs the teacher's {', '.join(missing)}, "
        "got None; read these fields from the store"
    )


def _check_labels(labels: Tensor, vocab_size: int) -> None:
    counted = labels[labels != IGNORE_LABEL]
    if counted.numel() == 0:
        return
    low, high = (int(bound) for bound in torch.stack(counted.aminmax()).tolist())
    if low < 0 or high >= vocab_size:
        raise UsageError(
            f"labels run from {low} to {high}, expected 0 to {vocab_size - 1} (the student's head) "
            f"or {IGNORE_LABEL}; use a student with the teacher's vocabulary"
        )
