"""What the page says of the differences between small models."""

from collections.abc import Mapping
from typing import Any

from caskd.eval.contrasts import MIN_TASK_EXAMPLES, WITHIN_TASK
from caskd.eval.difference_table import contrast_fields, difference_line
from caskd.eval.findings import Findings
from caskd.eval.measure import ALL_TASKS
from caskd.eval.page import Section
from caskd.eval.page_table import Heads, table
from caskd.eval.tables import mcnemar_line

_ARMS: Heads = {
    "arm": ("arm", "text"), "num_seeds": ("seeds", "d"), "audc": ("mean AUDC", ".4f"),
    "seed_deviation": ("SD over seeds", ".4f"), "low": ("95 % from", ".4f"), "high": ("to", ".4f"),
    "quality_small": ("small alone", ".4f"), "rate_at_quality": ("rate at target", ".1%"),
    "cost_at_quality": ("FLOPs per token there", ".4g"), "num_seeds_short": ("seeds short", "d"),
}  # fmt: skip
CONTRASTS: Heads = {
    "first": ("arm", "text"), "second": ("minus", "text"), "task": ("task", "text"),
    "measure": ("measure", "text"), "difference": ("difference", "+.3g"),
    "low": ("95 % from", "+.3g"), "high": ("to", "+.3g"), "seed_low": ("over seeds from", "+.3g"),
    "seed_high": ("to", "+.3g"), "verdict": ("", "text"),
}  # fmt: skip


def comparisons(findings: Findings, summary: Mapping[str, Any]) -> Section:
    """Every arm against every other."""
    found = findings.comparisons
    pooled, by_task = (
        [one for one in found.more if (one.task in (ALL_TASKS, WITHIN_TASK)) == together]
        for together in (True, False)
    )
    tables = [table(_ARMS, summary["arms"])]
    if pooled:
        tables.append(table(CONTRASTS, map(contrast_fields, pooled), "By other measures"))
    if by_task:
        tables.append(table(CONTRASTS, map(contrast_fields, by_task), "By task", folded=True))
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
            f"The target is quality {found.target.quality:.4f}: rate_at_quality is the smallest "
            "deferral rate that reaches it, cost_at_quality the FLOPs per token there (lower is "
            "better). A seed, or a draw, that never does counts as deferring everything. "
            "within_task is the mean over tasks, each with thresholds of its own: to tell easy "
            f"tasks from hard ones earns nothing there. Tasks of {MIN_TASK_EXAMPLES} examples or "
            "more have lines of their own.",
        ],
    )
