"""The tables of differences between arms, and of the seeds behind them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from caskd.eval.report.page import Heads, Picture, Section, Table, table
from caskd.eval.report.sentences import difference_line, mcnemar_line
from caskd.eval.study import (
    ALL_TASKS,
    AUDC,
    COST,
    GAIN,
    MIN_TASK_EXAMPLES,
    NO_TASK,
    RATE,
    RATES,
    SMALL,
    WITHIN_TASK,
    Contrast,
    Findings,
    figures,
)
from caskd.store.io import plain

Rows = Iterator[dict[str, Any]]

_FIRST_FIELDS = ("low", "high", "num_draws", "seed", "num_seeds", "verdict")


def difference_rows(findings: Findings) -> Rows:
    """Every difference with its intervals: the areas over all examples first."""
    found, rule = findings.comparisons, findings.main_rule
    for one in found.between_arms:
        yield difference_row(one, rule)
    for label, first, second, difference in found.between_rules:
        row = difference_row(Contrast(label, label, ALL_TASKS, AUDC, difference), first)
        yield {**row, "second_rule": second}
    for one in found.more:
        yield difference_row(one, rule)


def difference_row(one: Contrast, rule: str) -> dict[str, Any]:
    """A difference by one rule, as `differences.csv` has it."""
    fields = contrast_fields(one)
    return {
        "first": one.first, "first_rule": rule, "second": one.second, "second_rule": rule,
        "audc_difference": fields["difference"] if one.measure == AUDC else None,
        **{name: fields.pop(name) for name in _FIRST_FIELDS}, **fields,
    }  # fmt: skip


def contrast_fields(one: Contrast) -> dict[str, Any]:
    """A difference with both intervals."""
    found = one.difference
    over_seeds = found.over_seeds
    return {
        "first": one.first, "second": one.second, "task": one.task, "measure": one.measure,
        "difference": found.value, "low": found.low, "high": found.high,
        "seed_low": over_seeds.low if over_seeds else None,
        "seed_high": over_seeds.high if over_seeds else None,
        "seed_interval": over_seeds.kind if over_seeds else None,
        "num_draws": found.num_draws, "seed": found.seed, "num_seeds": found.num_seeds,
        "verdict": found.verdict,
    }  # fmt: skip


def area_fields(one: Contrast) -> dict[str, Any]:
    """A difference of areas over all examples, as `differences` of summary.json has it."""
    fields = contrast_fields(one)
    del fields["task"], fields["measure"]
    return {
        name if name != "difference" else "audc_difference": value for name, value in fields.items()
    }


def seed_rows(findings: Findings) -> Rows:
    """One row per small model over all examples, within tasks, and for each task."""
    target = findings.comparisons.target
    seen: list[str] = []
    for place, one in enumerate(findings.measured):
        keys = {"small": one.label, "arm": one.arm, "seed": seen.count(one.arm)}
        seen.append(one.arm)
        at_target = {"rate_at_quality": target.rate[place], "cost_at_quality": target.cost[place],
                     "reaches_target": "yes" if target.reached[place] else "no"}  # fmt: skip
        none = dict.fromkeys(at_target)
        yield {**keys, "task": ALL_TASKS, **_seed_figures(one.main.figures), **at_target}
        tasks = {name: _seed_figures(figures(curve)) for name, curve in one.tasks.items()}
        if tasks:
            yield {**keys, "task": WITHIN_TASK, **_mean_figures(list(tasks.values())), **none}
        for task, row in tasks.items():
            yield {**keys, "task": plain(task) or NO_TASK, **row, **none}


def _seed_figures(row: Mapping[str, Any]) -> dict[str, Any]:
    names = ("num_examples", "quality_small", "quality_large", AUDC, "random_audc", GAIN,
             *(f"quality_at_{100 * rate:.0f}" for rate in RATES))  # fmt: skip
    return {name: row[name] for name in names}


def _mean_figures(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Each task weighted by its examples."""
    count = sum(row["num_examples"] for row in rows)
    return {
        name: count if name == "num_examples"
        else sum(row["num_examples"] * row[name] for row in rows) / count
        for name in rows[0]
    }  # fmt: skip


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


def comparisons(findings: Findings, _: Mapping[str, Picture]) -> Section:
    """Every arm against every other."""
    found = findings.comparisons
    together = (ALL_TASKS, WITHIN_TASK)
    pooled = [one for one in found.more if one.task in together and one.measure != COST]
    by_task = [one for one in found.more if one.task not in together]
    tables = [table(_ARMS, map(asdict, found.arms))]
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
