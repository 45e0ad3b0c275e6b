"""The CAT mask: which rows count in the loss.

Dimension letters: N rows (predicted response tokens).
"""

from typing import get_args

from torch import Tensor

from caskd.store.errors import UsageError
from caskd.train.objectives import MaskRule

IGNORE_LABEL = -100
"""A row with this label counts in nothing."""


def keep_mask(
    student_argmax: Tensor | None, teacher_argmax: Tensor | None, label: Tensor, rule: MaskRule
) -> Tensor:
    """Which rows count: alpha of Cascade-Aware Training (arXiv 2406.00060).

    Rows with label `IGNORE_LABEL` are never kept.

    Args:
        student_argmax: [N] ids, of the same forward pass; None where the rule does not need it.
        teacher_argmax: [N] ids; None where the rule does not need it.
        label: [N] ids.
        rule: `all` rows; rows where `either` model's argmax is the label (CAT); rows where the
            argmax of the `teacher` alone, or of the `student` alone, is the label.

    Returns:
        [N] bool.

    Raises:
        UsageError: the rule is unknown, or an argmax that it needs is None.
    """
    if rule not in get_args(MaskRule):
        raise UsageError(
            f"mask rule {rule!r}: unknown; expected one of {', '.join(get_args(MaskRule))}; choose "
            "one of these"
        )
    counted = label != IGNORE_LABEL
    if rule == "all":
        return counted
    if rule != "teacher" and student_argmax is None:
        raise UsageError(
            f"mask rule {rule!r}: student_argmax is None; expected [N] token ids; pass them"
        )
    if rule != "student" and teacher_argmax is None:
        raise UsageError(
            f"mask rule {rule!r}: teacher_argmax is None; expected [N] token ids; pass them"
        )
    if rule == "teacher":
        return counted & (teacher_argmax == label)
    if rule == "student":
        return counted & (student_argmax == label)
    return counted & ((student_argmax == label) | (teacher_argmax == label))
