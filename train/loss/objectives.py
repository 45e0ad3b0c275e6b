"""The objectives by name, and the one function that makes every mask out of what models say.

For response tokens i with label y, student p_S, teacher p_L and label weight w, all of them are

    L = - sum_i a_i * ( w * log p_S(y_i) + (1 - w) * sum_v p_L(v) log p_S(v) )

and differ in w and in the rule for the mask a_i only.

Dimension letters: N rows (predicted response tokens).
"""

from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, get_args

from torch import Tensor

from caskd.store.errors import UsageError

MaskRule = Literal["all", "either", "teacher", "student"]
AnyRule = MaskRule | Literal["random"]
"""`random`: a mask that is given, not made from what a model says; the control of the others."""

Tail = Literal["bucket", "renormalise", "drop", "none"]
TAILS: tuple[Tail, ...] = get_args(Tail)

TAILS_OF_KIND = MappingProxyType({"topk": TAILS[:3], "sampled": TAILS[3:]})
"""Kind of a store -> the tails that make sense for it, the default first: draws leave nothing out,
a top-k always does."""

IGNORE_LABEL = -100
"""Rows with this label count nowhere."""


@dataclass(frozen=True)
class Objective:
    """Which rows count, and how much of each is the label's."""

    rule: AnyRule
    w: float

    @property
    def needs_distribution(self) -> bool:
        """Whether the teacher's top-k is part of the loss."""
        return self.w < 1

    @property
    def needs_teacher(self) -> bool:
        """Whether a row without a teacher row cannot count."""
        return self.needs_distribution or self.rule in ("either", "teacher")


OBJECTIVES = MappingProxyType(
    {
        "xent": Objective("all", 1.0),
        "dist": Objective("all", 0.5),
        "cat-xent": Objective("either", 1.0),
        "cat-dist": Objective("either", 0.5),
        "cat-xent-l": Objective("teacher", 1.0),
        "cat-xent-s": Objective("student", 1.0),
        "cat-dist-l": Objective("teacher", 0.5),
        "cat-dist-s": Objective("student", 0.5),
        "random-xent": Objective("random", 1.0),
        "random-dist": Objective("random", 0.5),
    }
)


def resolve_objective(name: str, w: float | None = None) -> Objective:
    """The objective called `name`, with `w` in place of its own label weight when given.

    Raises:
        UsageError: the name is not in `OBJECTIVES`, or `w` is outside [0, 1].
    """
    if name not in OBJECTIVES:
        raise UsageError(f"objective {name!r} is unknown; choose one of {', '.join(OBJECTIVES)}")
    objective = OBJECTIVES[name]
    if w is None:
        return objective
    if not 0 <= w <= 1:
        raise UsageError(f"w is {w}, expected a label weight between 0 (teacher only) and 1")
    return Objective(objective.rule, float(w))


def resolve_unmasked(name: str, w: float | None, user: str) -> Objective:
    """`resolve_objective`, for a loop that has no mask to give.

    Raises:
        UsageError: the same, or the objective takes a mask that is given.
    """
    objective = resolve_objective(name, w)
    if objective.rule == "random":
        raise UsageError(
            f"{user}: objective {name!r} takes the kept shares of another run, which caskd train "
            "alone reads (--keep-fraction-from); expected another objective here. In a loop of "
            f"your own, give cascade_aware_loss {name.removeprefix('random-')!r} and keep=."
        )
    return objective


def keep_mask(
    student_argmax: Tensor | None, teacher_argmax: Tensor | None, label: Tensor, rule: MaskRule
) -> Tensor:
    """Which rows count: alpha of Cascade-Aware Training (arXiv 2406.00060).

    Rows of label `IGNORE_LABEL` are never kept.

    Args:
        student_argmax: [N] ids, of the same forward pass; None where the rule does not ask for it.
        teacher_argmax: [N] ids; None where the rule does not ask for it.
        label: [N] ids.
        rule: `all` rows; those where `either` model's argmax is the label (CAT); or the
            `teacher`'s, or the `student`'s alone.

    Returns:
        [N] bool.

    Raises:
        UsageError: the rule is unknown or asks for an argmax that was not given.
    """
    if rule not in get_args(MaskRule):
        raise UsageError(f"mask rule {rule!r} is unknown; choose one of {get_args(MaskRule)}")
    counted = label != IGNORE_LABEL
    if rule == "all":
        return counted
    if rule != "teacher" and student_argmax is None:
        raise UsageError(f"mask rule {rule!r} needs student_argmax, got None; pass it")
    if rule != "student" and teacher_argmax is None:
        raise UsageError(f"mask rule {rule!r} needs teacher_argmax, got None; pass it")
    if rule == "teacher":
        return counted & (teacher_argmax == label)
    if rule == "student":
        return counted & (student_argmax == label)
    return counted & ((student_argmax == label) | (teacher_argmax == label))


def resolve_tail(tail: Tail | None, kind: str) -> Tail:
    """The tail to use with a store of this kind.

    Raises:
        UsageError: one that makes no sense for it.
    """
    fitting = TAILS_OF_KIND[kind]
    if tail is None:
        return fitting[0]
    if tail not in fitting:
        holds = (
            "draws of the teacher's whole distribution, which leave no tail"
            if kind == "sampled"
            else "a top-k, which leaves a tail"
        )
        raise UsageError(
            f"--tail {tail}: the store holds {holds}; expected {' or '.join(fitting)}: "
            f"leave --tail out for {fitting[0]}"
        )
    return tail
