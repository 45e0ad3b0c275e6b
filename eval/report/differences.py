"""Differences between arms and the seeds behind them: CSV rows and the section of the page."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from caskd.eval.curves import RATES, curve_figures
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
    SMALL,
    WITHIN_TASK,
    Analysis,
    Contrast,
)
from caskd.store.io import strip_control

Rows = Iterator[dict[str, Any]]

_FIRST_FIELDS = ("low", "high", "num_draws", "seed", "num_seeds", "verdict")


def difference_rows(analysis: Analysis) -> Rows:
    """Every difference with its intervals: the areas over all examples first."""
    found, rule = analysis.comparisons, analysis.main_rule
    for contrast in found.between_arms:
        yield difference_row(contrast, rule)
    for label, first, second, difference in found.between_rules:
        row = difference_row(Contrast(label, label, ALL_TASKS, AUDC, difference), first)
        yield {**row, "second_rule": second}
    for contrast in found.more:
        yield difference_row(contrast, rule)


def difference_row(contrast: Contrast, rule: str) -> dict[str, Any]:
    """A difference by one rule, as a row of `differences.csv`."""
    fields = contrast_fields(contrast)
    is_area = contrast.measure == AUDC
    return {
        "first": contrast.first,
        "first_rule": rule,
        "second": contrast.second,
        "second_rule": rule,
        "audc_difference": fields["difference"] if is_area else None,
        **{name: fields.pop(name) for name in _FIRST_FIELDS},
        **fields,
    }


def contrast_fields(contrast: Contrast) -> dict[str, Any]:
    """A difference with both intervals, as in `contrasts` of summary.json."""
    difference = contrast.difference
    over_seeds = difference.over_seeds
    return {
        "first": contrast.first,
        "second": contrast.second,
        "task": contrast.task,
        "measure": contrast.measure,
        "difference": difference.value,
        "low": difference.low,
        "high": difference.high,
        "seed_low": over_seeds.low if over_seeds else None,
        "seed_high": over_seeds.high if over_seeds else None,
        "seed_interval": over_seeds.kind if over_seeds else None,
        "num_draws": difference.num_replicates,
        "seed": difference.seed,
        "num_seeds": difference.num_seeds,
        "verdict": difference.verdict,
    }


def area_fields(contrast: Contrast) -> dict[str, Any]:
    """A difference of areas over all examples, as in `differences` of summary.json."""
    fields = contrast_fields(contrast)
    del fields["task"], fields["measure"]
    return {
        name if name != "difference" else "audc_difference": value for name, value in fields.items()
    }


def seed_rows(analysis: Analysis) -> Rows:
    """One row per small model over all examples, within tasks, and for each task."""
    target = analysis.comparisons.target
    seen: list[str] = []
    for index, result in enumerate(analysis.results):
        keys = {"small": result.label, "arm": result.arm, "seed": seen.count(result.arm)}
        seen.append(result.arm)
        at_target = {
            "rate_at_quality": target.rate[index],
            "cost_at_quality": target.cost[index],
            "reaches_target": "yes" if target.reached[index] else "no",
        }
        none = dict.fromkeys(at_target)
        yield {**keys, "task": ALL_TASKS, **_seed_figures(result.main.figures), **at_target}
        tasks = {name: _seed_figures(curve_figures(curve)) for name, curve in result.tasks.items()}
        if tasks:
            yield {**keys, "task": WITHIN_TASK, **_mean_figures(list(tasks.values())), **none}
        for task, figures in tasks.items():
            yield {**keys, "task": strip_control(task) or NO_TASK, **figures, **none}


def _seed_figures(figures: Mapping[str, Any]) -> dict[str, Any]:
    names = ("num_examples", "quality_small", "quality_large", AUDC, "random_audc", GAIN)
    at_rates = (f"quality_at_{100 * rate:.0f}" for rate in RATES)
    return {name: figures[name] for name in (*names, *at_rates)}


def _mean_figures(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Each task weighted by its examples."""
    count = sum(row["num_examples"] for row in rows)
    means = {name: sum(row["num_examples"] * row[name] for row in rows) / count for name in rows[0]}
    return {**means, "num_examples": count}


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
    "their examples, so separating easy from hard tasks gives no credit. Tasks with "
    f"{MIN_TASK_EXAMPLES} questions or more have their own differences."
)


def contrast_table(contrasts: Sequence[Contrast], caption: str, *, folded: bool = False) -> Table:
    """Differences with both intervals; of each task if `folded`."""
    rows = []
    for contrast in contrasts:
        within = ", within tasks" if contrast.task == WITHIN_TASK else ""
        rows.append(
            {
                **contrast_fields(contrast),
                "task": contrast.task if folded else "",
                "measure": _MEASURES[contrast.measure] + within,
            }
        )
    return table(_CONTRASTS, rows, caption, folded=folded)


def comparisons(analysis: Analysis, _: Mapping[str, Picture]) -> Section:
    """Every arm against every other."""
    found = analysis.comparisons
    together = (ALL_TASKS, WITHIN_TASK)
    pooled = [c for c in found.more if c.task in together and c.measure != COST]
    by_task = [c for c in found.more if c.task not in together]
    is_table = analysis.outcomes is not None
    heads = {**_ARMS, "cost_at_quality": ("cost there", ".4g")} if is_table else _ARMS
    tables = [table(heads, map(asdict, found.arms))]
    if pooled:
        tables.append(contrast_table(pooled, "By other measures"))
    if by_task:
        tables.append(contrast_table(by_task, "By task", folded=True))
    notes = [
        f"Intervals resample the test {analysis.resampled}, the same ones for all models, and the "
        "training seeds of an arm that has several. Intervals over seeds alone are Student's t; "
        "trust them if seeds are few. No difference is shown if either interval contains zero. "
        + (
            ""
            if is_table
            else "With one seed the intervals do not cover what another training run would give."
        ),
        f"The target is quality {found.target.quality:.4f}. The rate at target is the smallest "
        "deferral rate that reaches it (lower is better). A seed or a replicate that never reaches "
        "it counts as rate 1, which pays for deferring everything. differences.csv compares the "
        f"{analysis.results[0].pair.large.cost_unit} at the target.",
    ]
    if analysis.results[0].tasks:
        notes.append(_WITHIN)
    return Section(
        "Differences between small models" if found.between_arms else "Area with its interval",
        bullets=[
            *(difference_line(contrast, analysis.resampled) for contrast in found.between_arms),
            *(mcnemar_line(*test) for test in found.at_one_rate),
        ],
        tables=tables,
        notes=notes,
    )
