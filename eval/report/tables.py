"""The tables of a report: CSV for spreadsheets, and the summary on the terminal."""

import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from caskd.eval.curves import DeferralCurve, curve_figures
from caskd.eval.report.sentences import (
    difference_line,
    guarantee_lines,
    point_lines,
    questions_line,
    token_cascade_lines,
)
from caskd.eval.study import ALL_TASKS, NO_TASK, Analysis, CascadeResult, sentence
from caskd.store.io import csv_cell, escape_control, strip_control

Rows = Iterator[dict[str, Any]]


def summary_rows(analysis: Analysis) -> Rows:
    """One row per small model over all examples, then one per task."""
    for result in analysis.results:
        yield {"small": result.label, "task": ALL_TASKS, **_main_figures(result)}
        for task, curve in result.tasks.items():
            yield {
                "small": result.label,
                "task": strip_control(task) or NO_TASK,
                **curve_figures(curve),
            }


def _main_figures(result: CascadeResult) -> dict[str, Any]:
    wanted = curve_figures(result.curve)  # names alone: the values of `figures` are of all points
    return {name: result.main.figures[name] for name in wanted}


def rule_rows(analysis: Analysis) -> Rows:
    """One row per small model and rule."""
    for result in analysis.results:
        yield from small_rule_rows(result)


def small_rule_rows(result: CascadeResult) -> Rows:
    """One row per rule of one small model."""
    for name, rule in result.rules.items():
        low, high = result.intervals[name]
        interval = {"audc_low": low, "audc_high": high}
        yield {"small": result.label, "rule": name, **rule.figures, **interval}


def curve_rows(analysis: Analysis) -> Rows:
    """The points of the main rule's curves, with every cost."""
    for result in analysis.results:
        costs = {_UNIT_COLUMNS[unit]: values for unit, values in result.costs.items()}
        extra = {**_main_cost(result, result.main_cost), **costs}
        yield from _point_rows({"small": result.label}, result.curve, extra)


def rule_curve_rows(analysis: Analysis) -> Rows:
    """The points of every rule's curves."""
    for result in analysis.results:
        for name, rule in result.rules.items():
            extra = _main_cost(result, rule.main_cost)
            yield from _point_rows({"small": result.label, "rule": name}, rule.curve, extra)


_UNIT_COLUMNS = {
    "flops": "flops_per_example",
    "seconds": "seconds_per_example",
    "money": "money_per_example",
    "cost": "cost_per_example",
}


def _main_column(result: CascadeResult) -> str:
    return "cost_per_example" if result.pair.small.is_outcomes else "flops_per_token"


def _main_cost(result: CascadeResult, values: Any) -> dict[str, Any]:
    """The column of the main cost; none where it is not known."""
    return {_main_column(result): values} if result.has_cost else {}


def _point_rows(keys: Mapping[str, str], curve: DeferralCurve, extra: Mapping[str, Any]) -> Rows:
    arrays = {
        "deferral_rate": curve.deferral_rate,
        "threshold": curve.threshold,
        "quality": curve.quality,
        "a1": curve.a1,
        "a2": curve.a2,
        "random": curve.random,
        **extra,
    }
    for point in zip(*(array.tolist() for array in arrays.values()), strict=True):
        yield {**keys, **dict(zip(arrays, point, strict=True))}


def tail_rows(analysis: Analysis) -> Rows:
    """95th percentile of the seconds per example along the curve."""
    for result in analysis.results:
        if result.tail is None:
            return
        for rate, seconds in zip(*(part.tolist() for part in result.tail), strict=True):
            yield {"small": result.label, "deferral_rate": rate, "seconds_p95": seconds}


def bleu_rows(analysis: Analysis) -> Rows:
    """Corpus BLEU along the curve; no row without `--bleu`."""
    for result in analysis.results:
        if result.bleu is None:
            return
        for rate, bleu in zip(*(part.tolist() for part in result.bleu), strict=True):
            yield {"small": result.label, "deferral_rate": rate, "corpus_bleu": bleu}


def chain_rows(analysis: Analysis) -> Iterable[Mapping[str, Any]]:
    """One row per setting on the chain's frontier."""
    return analysis.chain.rows() if analysis.chain is not None else ()


def guarantee_rows(analysis: Analysis) -> Iterable[Mapping[str, Any]]:
    """One row per threshold of `--guarantee`; no row without it."""
    return analysis.guarantee.rows if analysis.guarantee is not None else ()


def token_cascade_rows(analysis: Analysis) -> Iterable[Mapping[str, Any]]:
    """One row per token cascade; no row without `--token-cascade`."""
    return [point.row for point in analysis.token_cascades]


def csv_bytes(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """Rows with equal keys as a CSV file; an absent number is an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for number, row in enumerate(rows):
        if number == 0:
            writer.writerow([csv_cell(name) for name in row])
        writer.writerow([csv_cell(v) if isinstance(v, str) else v for v in row.values()])
    return text.getvalue().encode()


def show(analysis: Analysis) -> None:
    """Print the summary on the terminal."""
    console = Console()
    large = strip_control(analysis.results[0].pair.large.model_name)
    title = f"Cascades with {large} as the large model"
    table = Table(title=escape(title), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("small, by task", overflow="fold")
    for heading in ("n", "small", "large", "AUDC", "random", "oracle", "over random", "APGR"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in summary_rows(analysis):
        pooled = row["task"] == ALL_TASKS
        table.add_row(*_cells(row), style="bold" if pooled else "")
    console.print(table)
    if analysis.resampled == "questions":
        line = questions_line(len(analysis.results[0].pair), analysis.num_questions)
        console.print(line, soft_wrap=True)
    for contrast in analysis.comparisons.between_arms:
        console.print(_shown(difference_line(contrast, analysis.resampled)), soft_wrap=True)
    if analysis.point is not None:
        for line in point_lines(analysis.point):
            console.print(_shown(line), soft_wrap=True)
    for line in guarantee_lines(analysis.guarantee):
        console.print(_shown(line), soft_wrap=True)
    for line in token_cascade_lines(analysis.token_cascades):
        console.print(escape(line), soft_wrap=True)
    for warning in analysis.warnings:
        console.print(f"[yellow]Warning:[/] {_shown(warning)}", soft_wrap=True)
    console.print(_shown(sentence(analysis.decision)), soft_wrap=True)


def _shown(text: str) -> str:
    """Text in which rich finds no markup, and the terminal no control character."""
    return escape(escape_control(text))


def _cells(row: Mapping[str, Any]) -> list[str]:
    qualities = ("quality_small", "quality_large", "audc", "random_audc", "oracle_audc")
    percent, apgr = row["percent_over_random"], row["apgr"]
    return [
        _shown(row["small"] if row["task"] == ALL_TASKS else f"  {row['task']}"),
        f"{row['num_examples']:,}",
        *(f"{row[name]:.3f}" for name in qualities),
        "-" if percent is None else f"{percent:+.1f} %",
        "-" if apgr is None else f"{apgr:.3f}",
    ]
