"""`caskd eval`: from stored predictions to figures, tables and a page."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from caskd.eval.bootstrap import Difference
from caskd.eval.cascade import Cascade
from caskd.eval.config import EvalConfig
from caskd.eval.measure import ALL_TASKS, Measured, differences, figures, labels, measure, warnings
from caskd.eval.page import html_bytes
from caskd.eval.plots import curve_figure, parts_figure, png_bytes
from caskd.eval.predictions import Predictions, read_predictions
from caskd.eval.tables import csv_bytes, curve_rows, difference_line, show, summary_rows
from caskd.eval.text import plain
from caskd.store.errors import UsageError
from caskd.store.files import replace_file

FORMAT = "caskd-report"
FORMAT_VERSION = 1
RULE = "average"
SUMMARY = "summary.json"


def evaluate(config: EvalConfig) -> dict[str, Any]:
    """Measure every small model against the large one and write the report.

    Returns:
        The content of `summary.json`.

    Raises:
        UsageError: a file is missing or not a predictions file, or `out` holds something else.
        IdentityError: predictions that do not belong together.
    """
    out = Path(config.out)
    _check_folder(out)
    if not config.small:
        raise UsageError("no small model given; type --small FILE, once for each")
    large = read_predictions(config.large)
    smalls = [read_predictions(file) for file in config.small]
    measured = [
        measure(label, Cascade(small, large), RULE)
        for label, small in zip(labels(smalls), smalls, strict=True)
    ]
    found = differences(measured, RULE)
    summary = _summary(measured, found)
    _write(out, summary, measured, found)
    show(measured, found, summary["warnings"])
    print(f"report: {out / 'index.html'}")
    return summary


def _check_folder(out: Path) -> None:
    """A report may replace a report, and nothing else."""
    if not out.exists():
        return
    if not out.is_dir():
        raise UsageError(f"--out {out} is a file, expected a folder; choose another --out")
    if not any(out.iterdir()):
        return
    try:
        known = json.loads((out / SUMMARY).read_bytes())["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError):
        known = False
    if not known:
        raise UsageError(f"--out {out} is not empty and not a report; choose another --out")


def _write(
    out: Path,
    summary: Mapping[str, Any],
    measured: Sequence[Measured],
    found: Sequence[tuple[Measured, Measured, Difference]],
) -> None:
    """Make every file, then put each in place whole."""
    curve_png, parts_png = (
        png_bytes(figure) for figure in (curve_figure(measured), parts_figure(measured))
    )
    page = html_bytes(
        large=summary["large"]["name"],
        rule=RULE,
        version=summary["caskd_version"],
        all_tasks=ALL_TASKS,
        rows=list(summary_rows(measured)),
        differences=[difference_line(a.label, b.label, difference) for a, b, difference in found],
        warnings=summary["warnings"],
        curve_png=curve_png,
        parts_png=parts_png,
    )
    files = {
        # The summary comes first: it marks the folder as a report, also if writing stops half-way.
        SUMMARY: json.dumps(summary, indent=2, allow_nan=False).encode(),
        "summary.csv": csv_bytes(summary_rows(measured)),
        "curve.csv": csv_bytes(curve_rows(measured)),
        "deferral_curve.png": curve_png,
        "a1_a2.png": parts_png,
        "index.html": page,
    }
    out.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        replace_file(out / name, content)


def _summary(
    measured: Sequence[Measured], found: Sequence[tuple[Measured, Measured, Difference]]
) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "caskd_version": version("caskd"),
        "rule": RULE,
        "quality": measured[0].cascade.large.metadata["quality"],
        "large": _model(measured[0].cascade.large),
        "smalls": [
            {
                "label": one.label,
                **_model(one.cascade.small),
                ALL_TASKS: figures(one.curve),
                "tasks": {task: figures(curve) for task, curve in one.tasks.items()},
            }
            for one in measured
        ],
        "differences": [
            {
                "first": a.label,
                "second": b.label,
                **asdict(difference),
                "verdict": difference.verdict,
            }
            for a, b, difference in found
        ],
        "warnings": warnings(measured),
    }


def _model(predictions: Predictions) -> dict[str, Any]:
    return {
        "name": plain(predictions.model_name),
        "file": plain(predictions.source),
        "num_parameters": predictions.num_parameters,
        "data_digest": predictions.metadata.get("data_digest"),
    }
