"""`caskd train --mask`: a rule of rows from the initial student, in place of the objective's."""

from dataclasses import replace
from typing import Literal

from caskd.train.objectives import DelegateRule, Objective

MaskName = Literal["reachable"]
P_TH = 0.01
"""Default of --p-th (RSD, arXiv 2509.22230)."""


def mask_contradiction(
    mask: MaskName | None, p_th: float | None, objective: Objective, delegate: DelegateRule | None
) -> str | None:
    """What is wrong with the options of a mask by the initial student; None if nothing is."""
    if mask is None:
        return None if p_th is None else "--p-th needs --mask reachable"
    if p_th is not None and not 0 <= p_th <= 1:
        return f"--p-th {p_th:g}: expected a probability from 0 to 1; pass another number"
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
    if delegate == "l2d":
        return (
            f"--mask {mask}: --delegate l2d learns from every row; expected another rule of "
            "--delegate; omit one of the two"
        )
    return None


def masked_by_student(objective: Objective, mask: MaskName | None) -> Objective:
    """The objective, whose rule a mask by the initial student replaces."""
    return objective if mask is None else replace(objective, rule="random")
