"""What the page says of the differences between small models."""

from collections.abc import Mapping, Sequence
from typing import Any

from caskd.eval.contrasts import (
    AUDC,
    COST,
    GAIN,
    MIN_TASK_EXAMPLES,
    RATE,
    SMALL,
    WITHIN_TASK,
    Contrast,
)
from caskd.eval.difference_table import contrast_fields, difference_line
from caskd.eval.findings import Findings
from caskd.eval.measure import ALL_TASKS
from caskd.eval.page import Section, Table
from caskd.eval.page_table import Heads, table
from caskd.eval.tables import mcnemar_line

_ARMS: Heads = {
    "arm": ("arm", "text"), "num_seeds": ("seeds", "d"), "audc": ("mean AUDC", ".4f"),
    "seed_deviation": ("SD over seeds", ".4f"), "low": ("95 % from", ".4f"), "high": ("to", ".4f"),
    "quality_small": ("small alone", ".4f"), "rate_at_quality": ("rate at target", ".1%"),
    "cost_at_quality": ("FLOPs there", ".4g"), "num_seeds_short": ("seeds short", "d"),
}  # fmt: skip
_CONTRASTS: Heads = {
    "first": ("arm", "text"), "second": ("minus", "text"), "task": ("task", "text"),
    "measure": ("measure", "text"), "difference": ("difference", "+.4f"),
    "low": ("95 % from", "+.4f"), "high": ("to", "+.4f"), "seed_low": ("seeds from", "+.4f"),
    "seed_high": ("to", "+.4f"), "verdict": ("", "text"),
}  # fmt: skip

_MEASURES = {AUDC: "AUDC", SMALL: "small alone", GAIN: "AUDC over random", RATE: "rate at target"}

_WITHIN = (
    "\u201cWithin tasks\u201d is the mean over tasks, each with thresholds of its own, weighted by "
    "their examples: to tell easy tasks from hard ones earns nothing there. Tasks of "
    f"{MIN_TASK_EXAMPLES} examples or more have differences of their own."
)


def contrast_table(contrasts: Sequence[Contrast], caption: str, *, folded: bool = False) -> Table:
    """Differences with both intervals; of each task where `folded`."""
    rows = []
    for one in contrasts:
        words = _MEASURES[one.measure] + (", within tasks" if one.task == WITHIN_TASK else "")
        task = one.task if folded else ""
        rows.append({**contrast_fields(one), "task": task, "measure": words})
    return table(_CONTRASTS, rows, caption, folded=folded)


def comparisons(findings: Findings, summary: Mapping[str, Any]) -> Section:
    """Every arm against every other."""
    found = findings.comparisons
    together = (ALL_TASKS, WITHIN_TASK)
    pooled = [one for one in found.more if one.task in together and one.measure != COST]
    by_task = [one for one in found.more if one.task not in together]
    tables = [table(_ARMS, summary["arms"])]
    if pooled:
        tables.append(contrast_table(pooled, "By other measures"))
    if by_task:
        tables.append(contrast_table(by_task, "By task", folded=True))
    return Section(
        "Differences between small models" if found.between_arms else "Area with its interval",
        bullets=[
            *(difference_line(one) for one in found.between_arms),
            *(mcnemar_line(*one) for one in found.at_one_rate),
        ],
        tables=tables,
        notes=[
            "Intervals redraw the test examples, the same for all models, and the training seeds "
            "where an arm has several; those over seeds alone are Student's t, and the ones to "
            "trust where seeds are few. No difference is shown where either holds zero. With one "
            "seed they say nothing of what another training run would give.",
            f"The target is quality {found.target.quality:.4f}: the rate there is the smallest "
            "deferral rate that reaches it (lower is better), 1 for a seed, or a draw, that never "
            "does: it pays for deferring everything. The FLOPs per token there are compared in "
            "differences.csv.",
            *([_WITHIN] if findings.measured[0].tasks else []),
        ],
    )
