"""`caskd train --mask`: a rule of rows from the initial student, in place of the objective's."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from caskd.store.errors import UsageError, given_without
from caskd.train.objectives import LEARNS_TO_DEFER, DelegateRule, Objective

if TYPE_CHECKING:
    from caskd.store import TeacherStore

MaskName = Literal["reachable", "learnable"]
P_TH = 0.01
"""Default of --p-th (RSD, arXiv 2509.22230)."""
MASK_SHARE = 0.4
"""Default of --mask-share (AdaSPEC, arXiv 2510.19779)."""


def mask_contradiction(
    mask: MaskName | None,
    p_th: float | None,
    share: float | None,
    reference: Path | None,
    objective: Objective,
    delegate: DelegateRule | None,
) -> str | None:
    """What is wrong with the options of a mask by the initial student; None if nothing is."""
    for flag, value, rule in (
        ("--p-th", p_th, "reachable"),
        ("--mask-share", share, "learnable"),
        ("--reference", reference, "learnable"),
    ):
        if value is not None and mask != rule:
            return given_without(f"{flag} {value}", f"--mask {rule}")
    if mask is None:
        return None
    if p_th is not None and not 0 <= p_th <= 1:
        return f"--p-th {p_th:g}: expected a probability from 0 to 1; pass another number"
    if share is not None and not 0 < share <= 1:
        return (
            f"--mask-share {share:g}: expected a share of the rows, more than 0 and at most 1; "
            "pass another number"
        )
    if mask == "learnable" and reference is None:
        return (
            "--mask learnable: has no --reference; expected the finished run of a student that "
            "learnt from these stores without a mask; pass --reference RUN"
        )
    if objective.needs_keep:
        return (
            f"--mask {mask}: a random-* objective has a mask already; expected another objective; "
            "pass --objective xent or dist, or omit --mask"
        )
    if objective.matches_spans:
        return (
            f"--mask {mask}: alm and cat-alm match spans of text; expected an objective over "
            "tokens; pass --objective xent or dist, or omit --mask"
        )
    if delegate in LEARNS_TO_DEFER:
        return (
            f"--mask {mask}: --delegate {delegate} learns from every row; expected another rule of "
            "--delegate; omit one of the two"
        )
    return None


def masked_by_student(objective: Objective, mask: MaskName | None) -> Objective:
    """The objective, whose rule a mask by the initial student replaces."""
    return objective if mask is None else replace(objective, rule="given")


def check_mask_fields(mask: MaskName | None, stores: "Sequence[TeacherStore]") -> None:
    """Refuse a store that lacks what a mask reads.

    Raises:
        UsageError: names the store and its capture field.
    """
    for store in stores if mask == "learnable" else ():
        if store.spec.capture_fields["tail"] == "unknown":
            raise UsageError(
                f"--mask {mask}: capture.tail of --store {store.name} is unknown; expected the "
                "teacher's whole distribution, of which the mask reads the divergence; pass --mask "
                "reachable, or a store that caskd captured"
            )
