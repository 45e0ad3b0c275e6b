"""The tables of differences between arms, and of the seeds behind them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from caskd.eval.contrasts import AUDC, GAIN, WITHIN_TASK, Contrast
from caskd.eval.findings import Findings
from caskd.eval.measure import ALL_TASKS, NO_TASK, RATES, figures
from caskd.eval.text import plain

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


def difference_line(one: Contrast) -> str:
    """A paired difference of areas in words."""
    difference = one.difference
    seeds, alone = difference.num_seeds, difference.over_seeds
    over = "examples" if seeds == 1 else f"examples and {seeds} seeds"
    return (
        f"AUDC of {one.first} minus {one.second}: {difference.value:+.4f}, "
        f"95 % interval over {over} [{difference.low:+.4f}, {difference.high:+.4f}] "
        f"({difference.num_draws:,} draws, seed {difference.seed})"
        + (f", over seeds alone [{alone.low:+.4f}, {alone.high:+.4f}] ({alone.kind})"
           if alone else "")
        + f": {difference.verdict}"
    )  # fmt: skip
