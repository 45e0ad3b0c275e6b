"""The tables of a report: CSV for spreadsheets, and the summary on the terminal."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from caskd.eval.bootstrap import Difference
from caskd.eval.measure import ALL_TASKS, NO_TASK, Measured, figures
from caskd.eval.text import csv_cell, plain


def summary_rows(measured: Sequence[Measured]) -> Iterator[dict[str, Any]]:
    """One row per small model over all examples, then one per task."""
    for one in measured:
        yield {"small": one.label, "task": ALL_TASKS, **figures(one.curve)}
        for task, curve in one.tasks.items():
            yield {"small": one.label, "task": plain(task) or NO_TASK, **figures(curve)}


def curve_rows(measured: Sequence[Measured]) -> Iterator[dict[str, Any]]:
    """Every point of every curve."""
    for one in measured:
        curve = one.curve
        arrays = {
            "deferral_rate": curve.deferral_rate,
            "threshold": curve.threshold,
            "quality": curve.quality,
            "a1": curve.a1,
            "a2": curve.a2,
            "random": curve.random,
            "flops_per_token": one.token_flops,
            "flops_per_example": one.example_flops,
        }
        for point in zip(*(array.tolist() for array in arrays.values()), strict=True):
            yield {"small": one.label, **dict(zip(arrays, point, strict=True))}


def csv_bytes(rows: Iterator[Mapping[str, Any]]) -> bytes:
    """Rows with equal keys as a CSV file; an absent number is an empty cell."""
    text = io.StringIO()
    first = next(rows)
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(first)
    for row in (first, *rows):
        writer.writerow([csv_cell(v) if isinstance(v, str) else v for v in row.values()])
    return text.getvalue().encode()


def show(
    measured: Sequence[Measured],
    found: Sequence[tuple[Measured, Measured, Difference]],
    warnings: Sequence[str],
) -> None:
    """Print the summary on the terminal."""
    console = Console()
    large = measured[0].cascade.large
    title = f"Cascades with {plain(large.model_name)} as the large model"
    table = Table(title=escape(title), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("small, by task", overflow="fold")
    for heading in ("n", "small", "large", "AUDC", "random", "oracle", "gain", "APGR"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in summary_rows(measured):
        pooled = row["task"] == ALL_TASKS
        table.add_row(*_cells(row), style="bold" if pooled else "")
    console.print(table)
    for first, second, difference in found:
        console.print(escape(difference_line(first.label, second.label, difference)))
    for warning in warnings:
        console.print(f"[yellow]Warning:[/] {escape(warning)}")


def difference_line(first: str, second: str, difference: Difference) -> str:
    """A paired difference in words."""
    interval = f"[{difference.low:+.4f}, {difference.high:+.4f}]"
    return (
        f"AUDC of {first} minus {second}: {difference.audc_difference:+.4f}, "
        f"95 % interval over examples {interval} "
        f"({difference.num_draws:,} draws, seed {difference.seed}): {difference.verdict}"
    )


def _cells(row: Mapping[str, Any]) -> list[str]:
    qualities = ("quality_small", "quality_large", "audc", "random_audc", "oracle_audc")
    percent, apgr = row["percent_over_random"], row["apgr"]
    return [
        escape(row["small"] if row["task"] == ALL_TASKS else f"  {row['task']}"),
        f"{row['num_examples']:,}",
        *(f"{row[name]:.3f}" for name in qualities),
        "-" if percent is None else f"{percent:+.1f} %",
        "-" if apgr is None else f"{apgr:.3f}",
    ]
