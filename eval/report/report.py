"""`caskd eval`: from stored predictions to figures, tables and a page."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from caskd.eval.answers import Predictions
from caskd.eval.config import EvalConfig
from caskd.eval.report import differences, plots, tables
from caskd.eval.report.folder import CASCADE, FORMAT, SUMMARY, check_folder, write_files
from caskd.eval.report.page import Picture, html_bytes
from caskd.eval.report.plot_style import on_dark, png_bytes, svg_bytes
from caskd.eval.report.sections import page_sections
from caskd.eval.serving import cascade_fields
from caskd.eval.study import (
    ALL_TASKS,
    AUDC,
    FIXED_RATE,
    Contrast,
    Findings,
    Measured,
    figures,
    find,
)
from caskd.store.io import strip_control

FORMAT_VERSION = 1


def evaluate_cascades(config: EvalConfig) -> dict[str, Any]:
    """Measure every small model against the large one and write the report.

    Returns:
        The content of `summary.json`.

    Raises:
        UsageError: a file is missing or not a predictions file, a flag is wrong, or `out` holds
            something else.
        IdentityError: predictions that do not belong together.
    """
    out = Path(config.out)
    check_folder(out)
    findings = find(config)
    summary = _summary(findings)
    files = _files(findings, summary)
    write_files(out, files)
    tables.show(findings)
    print(f"report: {out / 'index.html'}")
    if CASCADE in files:
        print(f"cascade: {out / CASCADE}")
    return summary


def _files(findings: Findings, summary: Mapping[str, Any]) -> dict[str, bytes]:
    """Every file of the report; the summary first, which marks the folder as one."""
    files = {SUMMARY: json.dumps(summary, indent=2, allow_nan=False).encode()}
    pictures = {}
    for name, alt in _alts(findings).items():
        figure = _figure(name, findings)
        files[f"{name}.png"], svg = png_bytes(figure), svg_bytes(figure)
        files[f"{name}.svg"] = svg
        pictures[name] = Picture(alt, svg, on_dark(svg))
    for name, rows in _rows(findings).items():
        content = tables.csv_bytes(rows)
        if content:
            files[f"{name}.csv"] = content
    if findings.point is not None:
        fields = cascade_fields(findings.point)
        files[CASCADE] = json.dumps(fields, indent=2, allow_nan=False).encode()
    title = f"Cascades with {summary['large']['name']} as the large model"
    sections = page_sections(findings, summary, pictures)
    files["index.html"] = html_bytes(title, sections, summary["caskd_version"])
    return files


def _alts(findings: Findings) -> dict[str, str]:
    """The figures to draw, with what they show in words."""
    alts = {
        "deferral_curve": "Quality over deferral rate and over cost",
        "a1_a2": "A1 and A2 over deferral rate",
        "rules": "Quality over deferral rate by rule",
        "cost": "Quality over computation, time and money per example",
    }
    if findings.measured[0].bleu is not None:
        alts["bleu"] = "Corpus BLEU over deferral rate"
    if findings.chain is not None:
        alts["chain"] = "Quality over cost of the chain"
    return alts


def _figure(name: str, findings: Findings) -> Figure:
    measured = findings.measured
    if name == "rules":
        return plots.rules_figure(measured[0])
    if name == "chain":
        assert findings.chain is not None, "drawn only where there is one"
        return plots.chain_figure(findings.chain, measured, findings.priced)
    draw = {
        "deferral_curve": plots.curve_figure,
        "a1_a2": plots.parts_figure,
        "cost": plots.cost_figure,
        "bleu": plots.bleu_figure,
    }[name]
    return draw(measured)


def _rows(findings: Findings) -> dict[str, Any]:
    measured = findings.measured
    return {
        "summary": tables.summary_rows(measured),
        "curve": tables.curve_rows(measured),
        "rules": tables.rule_rows(measured),
        "rule_curves": tables.rule_curve_rows(measured),
        "differences": differences.difference_rows(findings),
        "seeds": differences.seed_rows(findings),
        "seconds": tables.tail_rows(measured),
        "samples": findings.samples,
        "bleu": tables.bleu_rows(measured),
        "chain": findings.chain.rows() if findings.chain else [],
        "transfer": findings.transfer,
    }


def _summary(findings: Findings) -> dict[str, Any]:
    measured, found = findings.measured, findings.comparisons
    large = measured[0].pair.large
    return {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "caskd_version": version("caskd"),
        "rule": findings.main_rule,
        "quality": large.metadata["quality"],
        "split": dict(findings.split),
        "large": _model(large),
        "smalls": [_small(one) for one in measured],
        "arms": [asdict(arm) for arm in found.arms],
        "target_quality": found.target.quality,
        "differences": [differences.area_fields(one) for one in found.between_arms],
        "contrasts": [
            differences.contrast_fields(one) for one in (*found.between_arms, *found.more)
        ],
        "at_one_rate": [
            {"first": a, "second": b, "rate": FIXED_RATE, **asdict(test), "verdict": test.verdict}
            for a, b, test in found.at_one_rate
        ],
        "rule_differences": [
            {"small": small, **differences.area_fields(Contrast(a, b, ALL_TASKS, AUDC, one))}
            for small, a, b, one in found.between_rules
        ],
        "rules_left_out": findings.left_out,
        "transfer": findings.transfer,
        "chain": findings.chain.summary() if findings.chain else None,
        "operating_point": cascade_fields(findings.point) if findings.point else None,
        "warnings": findings.warnings,
    }


def _small(one: Measured) -> dict[str, Any]:
    return {
        "label": one.label,
        "arm": one.arm,
        **_model(one.pair.small),
        ALL_TASKS: dict(one.main.figures),
        "tasks": {task: figures(curve) for task, curve in one.tasks.items()},
        "rules": {row.pop("rule"): row for row in tables.rule_rows([one]) if row.pop("small")},
    }


def _model(predictions: Predictions) -> dict[str, Any]:
    return {
        "name": strip_control(predictions.model_name),
        "file": strip_control(predictions.source),
        "num_parameters": predictions.num_parameters,
        "data_digest": predictions.metadata.get("data_digest"),
    }
