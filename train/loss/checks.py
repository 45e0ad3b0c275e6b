"""Checks of the loss's arguments. Each error is one line: got, expected, next step.

Checking shapes is free. Values (ids in range, no repeated id, mass of sampled targets) are checked
together, once per call, so that a GPU waits for the host only once or twice.

Dimension letters: N rows, k stored cells of a teacher row, V student vocabulary, H hidden width.
"""

import torch
from torch import Tensor

from caskd.store.errors import UsageError
from caskd.train.delegation import Delegation
from caskd.train.loss.mask import IGNORE_LABEL
from caskd.train.loss.targets import kept_cells
from caskd.train.loss.types import LossRows, TeacherRows
from caskd.train.objectives import Confidence, Objective, Tail

_SLICE_ROWS = 8192
"""Teacher rows checked together. The check's copies must not grow with the batch."""

_SAMPLED_ROUNDING = 1e-3
"""Largest distance of a row's sampled mass from 1 that rounding explains."""


def check_columns(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, rows: LossRows, keep: Tensor | None
) -> None:
    """Check the shapes: hidden [N, H], weight [V, H], bias [V], and N rows of all the rest."""
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1]:
        raise UsageError(
            f"hidden and lm_head_weight: shapes are {list(hidden.shape)} and {list(weight.shape)}; "
            "expected [N, H] and [V, H]; flatten batch and time to N rows"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise UsageError(
            f"bias: shape is {list(bias.shape)}; expected [{len(weight)}] as the head's rows; pass "
            "the bias of that head"
        )
    columns = {"labels": rows.labels, "row_weights": rows.weights, "keep": keep}
    if rows.teacher is not None:
        columns |= {f"teacher.{name}": value for name, value in vars(rows.teacher).items()}
    for name, column in columns.items():
        if column is None:
            continue
        has_cells = name in ("teacher.topk_ids", "teacher.topk_logits")
        expected_ndim = 2 if has_cells else 1
        if column.ndim != expected_ndim or len(column) != len(hidden):
            shape = f"[{len(hidden)}, k]" if has_cells else f"[{len(hidden)}]"
            raise UsageError(
                f"{name}: shape is {list(column.shape)}; expected {shape}; pass one per row of "
                "hidden"
            )
    if keep is not None and keep.dtype != torch.bool:
        raise UsageError(
            f"keep: dtype is {keep.dtype}; expected torch.bool; use row_weights for weights"
        )


def check_teacher(
    given: str | Objective, objective: Objective, teacher: TeacherRows | None
) -> None:
    """Check that the teacher rows have every field that the objective reads.

    Args:
        given: the objective as the caller passed it, for the errors.
    """
    if objective.needs_teacher and teacher is None:
        raise UsageError(
            f"objective {given!r}: teacher rows are None; expected TeacherRows; pass them"
        )
    if teacher is None or not objective.needs_distribution or teacher.has_distribution:
        return
    missing = [field for field, value in vars(teacher).items() if value is None]
    raise UsageError(
        f"objective {given!r} with w={objective.w:g}: no {', '.join(missing)} in the teacher "
        "rows; expected values, got None; read these fields from the store"
    )


def check_confidence(
    confidence: Confidence, delegation: Delegation | None, teacher: TeacherRows | None, impl: str
) -> None:
    """Check that a confidence term has what it reads, and fits the other arguments."""
    if not 0 <= confidence.weight < 1:
        raise UsageError(
            f"confidence: weight is {confidence.weight}; expected at least 0 and less than 1; pass "
            "a weight in this range"
        )
    if delegation is not None:
        raise UsageError(
            f"confidence {confidence.rule!r}: delegation is {delegation.rule!r}, which replaces "
            "the loss of the same rows; expected one of the two; pass None for one"
        )
    if teacher is None and confidence.rule == "cascade-gatekeeper":
        raise UsageError(
            f"confidence {confidence.rule!r}: teacher rows are None; expected TeacherRows; pass "
            "them, or use 'gatekeeper'"
        )
    if impl == "triton":
        raise UsageError(
            f"impl='triton': confidence is {confidence.rule!r}, which the Triton kernels do not "
            "compute; expected impl 'torch', 'dense' or 'auto'; pass one of these"
        )


def check_values(rows: LossRows, tail: Tail, vocab_size: int) -> None:
    """Check that ids index the student's logits, rows repeat no id, and sampled targets sum to 1.

    Raises:
        UsageError: a label, an id or a sum is out of range.
    """
    extremes = [_bounds(rows.labels[rows.labels != IGNORE_LABEL])]
    parts = _slices(rows.teacher)
    if parts:
        extremes.append(torch.stack([_cell_extremes(part) for part in parts]).amax(0))
    under, high, *teacher_extremes = torch.cat(extremes).tolist()
    if under > 0 or high >= vocab_size:
        raise UsageError(
            f"labels: run from {-under} to {high}; expected 0 to {vocab_size - 1} (the student's "
            f"head) or {IGNORE_LABEL}; use a student with the teacher's vocabulary"
        )
    if parts:
        _check_cells(*teacher_extremes, vocab_size=vocab_size)
    if parts and tail == "none":
        _check_sampled(*torch.stack([_sampled_extremes(part) for part in parts]).amax(0).tolist())


def _check_cells(under: int, high: int, is_repeated: int, *, vocab_size: int) -> None:
    if under > 0 or high >= vocab_size:
        raise UsageError(
            f"teacher ids: run from {-under} to {high}; expected 0 to {vocab_size - 1} (the "
            "student's head); use a student with the teacher's vocabulary"
        )
    if is_repeated:
        raise UsageError(
            "teacher ids: a row has the same id twice; expected distinct ids; merge repeated draws "
            "into one id with their summed count"
        )


def _check_sampled(left_out: float, excess: float) -> None:
    if left_out > 0 or excess > _SAMPLED_ROUNDING:
        raise UsageError(
            f"tail='none': got a tail mass up to {left_out:.3g} and a sum off by {excess:.3g}; "
            "expected targets that sum to 1; use tail='bucket', or the counts of a sampled store"
        )


def _slices(teacher: TeacherRows | None) -> list[TeacherRows]:
    """Views of a few rows each; an empty list without a distribution."""
    if teacher is None or not teacher.has_distribution:
        return []
    starts = range(0, len(teacher.argmax), _SLICE_ROWS)
    return [teacher.take(slice(start, start + _SLICE_ROWS)) for start in starts]


def _bounds(ids: Tensor) -> Tensor:
    """[2] the smallest id, negated, and the largest; 0 and 0 for an empty tensor."""
    if ids.numel() == 0:
        return torch.zeros(2, device=ids.device, dtype=torch.int64)
    low, high = ids.aminmax()
    return torch.stack([-low, high])


def _cell_extremes(teacher: TeacherRows) -> Tensor:
    """[3] the largest -id, the largest id, and 1 if a row repeats an id."""
    ids, valid = kept_cells(teacher)
    filler = -1 - torch.arange(ids.shape[1], device=ids.device)
    ordered = torch.where(valid, ids, filler).sort(dim=1).values
    is_repeated = (ordered[:, 1:] == ordered[:, :-1]).any().long()
    return torch.cat([_bounds(ids), is_repeated[None]])


def _sampled_extremes(teacher: TeacherRows) -> Tensor:
    """[2] the largest tail mass, and the largest distance of a row's sum of targets from 1."""
    assert teacher.topk_logits is not None
    assert teacher.logsumexp is not None
    assert teacher.tail_mass is not None
    _, valid = kept_cells(teacher)
    absent = ~teacher.present()
    logprobs = (teacher.topk_logits - teacher.logsumexp[:, None]).float()
    total = logprobs.masked_fill(~valid, -torch.inf).exp().sum(1)
    excess = (total - 1).abs().masked_fill(absent, 0).max()
    return torch.stack([teacher.tail_mass.float().masked_fill(absent, 0).max(), excess])
