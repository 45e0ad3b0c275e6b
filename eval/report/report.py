"""The report on cascades: its parts, and the content of summary.json."""

import json
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from caskd.eval.answers import Predictions
from caskd.eval.config import EvalConfig
from caskd.eval.curves import answer_cost, curve_figures
from caskd.eval.report import differences, opening, plots, promises, sections, tables
from caskd.eval.report.folder import CASCADE, FORMAT, check_folder
from caskd.eval.report.layout import Part, Plot, Report, build_files, file_names
from caskd.eval.serving import cascade_fields
from caskd.eval.study import (
    ALL_TASKS,
    AUDC,
    FIXED_RATE,
    Analysis,
    CascadeResult,
    Contrast,
    analyze,
)
from caskd.store.io import strip_control

FORMAT_VERSION = 1

CONTENTS = (
    Part(section=opening.decision),
    Part(
        tables={"summary": tables.summary_rows, "curve": tables.curve_rows},
        plots={
            "deferral_curve": Plot("Quality over deferral rate and over cost", plots.curve_figure)
        },
        section=sections.overview,
    ),
    Part(section=sections.operating_point),
    Part(tables={"guarantee": tables.guarantee_rows}, section=promises.thresholds),
    Part(
        tables={"differences": differences.difference_rows, "seeds": differences.seed_rows},
        section=differences.comparisons,
    ),
    Part(
        plots={"a1_a2": Plot("A1 and A2 over deferral rate", plots.parts_figure)},
        section=sections.quality_parts,
    ),
    Part(
        tables={"rules": tables.rule_rows, "rule_curves": tables.rule_curve_rows},
        plots={"rules": Plot("Quality over deferral rate by rule", plots.rules_figure)},
        section=sections.rules,
    ),
    Part(
        tables={"seconds": tables.tail_rows},
        plots={
            "cost": Plot("Quality over computation, time and money per example", plots.cost_figure)
        },
        section=sections.cost,
    ),
    Part(tables={"benchmarks": lambda analysis: analysis.benchmarks}, section=promises.benchmarks),
    Part(
        tables={"token_cascades": tables.token_cascade_rows},
        section=sections.token_cascades,
    ),
    Part(
        tables={"bleu": tables.bleu_rows},
        plots={"bleu": Plot("Corpus BLEU over deferral rate", plots.bleu_figure)},
        section=sections.corpus_bleu,
    ),
    Part(
        tables={"chain": tables.chain_rows},
        plots={"chain": Plot("Quality over cost of the chain", plots.chain_figure)},
        section=sections.chain,
    ),
    Part(
        tables={"transfer": lambda analysis: analysis.threshold_drift},
        section=sections.threshold_drift,
    ),
    Part(tables={"samples": lambda analysis: analysis.samples}, section=sections.samples),
    Part(section=opening.terms),
)
"""The parts of a report on cascades, in the order of the page. A new table, figure or section is
one entry here."""
CASCADE_FILES = file_names(CONTENTS) | {CASCADE}


def cascade_report(config: EvalConfig) -> Report:
    """Measure every small model against the large one.

    Raises:
        UsageError: a file is missing or not a predictions file, a flag is wrong, or `out` holds
            something else.
        IdentityError: predictions that do not belong together.
    """
    check_folder(Path(config.out))
    analysis = analyze(config)
    summary = cascade_summary(analysis)
    title = f"Cascades with {summary['large']['name']} as the large model"
    files = build_files(CONTENTS, analysis, title, summary)
    if analysis.point is not None:
        fields = cascade_fields(analysis.point)
        files[CASCADE] = json.dumps(fields, indent=2, allow_nan=False).encode()
    return Report(summary, files, partial(tables.show, analysis))


def cascade_summary(analysis: Analysis) -> dict[str, Any]:
    """The content of summary.json."""
    results, found = analysis.results, analysis.comparisons
    large = results[0].pair.large
    return {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "caskd_version": version("caskd"),
        "rule": analysis.main_rule,
        "quality": large.metadata["quality"],
        "split": dict(analysis.split),
        "num_questions": analysis.num_questions,
        "outcomes": analysis.outcomes.summary() if analysis.outcomes else None,
        "cost_unit": large.cost_unit,
        "guarantee": analysis.guarantee.summary() if analysis.guarantee else None,
        "do_not_cascade": [asdict(one) for one in analysis.dominations],
        "benchmarks": analysis.benchmarks,
        "large": _model(large),
        "smalls": [_small(result) for result in results],
        "arms": [asdict(arm) for arm in found.arms],
        "target_quality": found.target.quality,
        "differences": [differences.area_fields(contrast) for contrast in found.between_arms],
        "contrasts": [
            differences.contrast_fields(contrast) for contrast in (*found.between_arms, *found.more)
        ],
        "at_one_rate": [
            {"first": a, "second": b, "rate": FIXED_RATE, **asdict(test), "verdict": test.verdict}
            for a, b, test in found.at_one_rate
        ],
        "rule_differences": [
            {"small": small, **differences.area_fields(Contrast(a, b, ALL_TASKS, AUDC, difference))}
            for small, a, b, difference in found.between_rules
        ],
        "rules_left_out": analysis.left_out,
        "transfer": analysis.threshold_drift,
        "token_cascades": list(tables.token_cascade_rows(analysis)),
        "chain": analysis.chain.summary() if analysis.chain else None,
        "operating_point": cascade_fields(analysis.point) if analysis.point else None,
        "decision": analysis.decision.summary(),
        "warnings": analysis.warnings,
    }


def _small(result: CascadeResult) -> dict[str, Any]:
    return {
        "label": result.label,
        "arm": result.arm,
        **_model(result.pair.small),
        ALL_TASKS: dict(result.main.figures),
        "tasks": {task: curve_figures(curve) for task, curve in result.tasks.items()},
        "rules": {
            row.pop("rule"): row for row in tables.small_rule_rows(result) if row.pop("small")
        },
    }


def _model(predictions: Predictions) -> dict[str, Any]:
    named = {
        "name": strip_control(predictions.model_name),
        "file": strip_control(predictions.source),
    }
    if predictions.is_outcomes:
        return {**named, "mean_cost": float(answer_cost(predictions).mean())}
    return {
        **named,
        "num_parameters": predictions.num_parameters,
        "num_active_parameters": predictions.num_active_parameters,
        "data_digest": predictions.metadata.get("data_digest"),
        "num_empty_answers": predictions.num_empty(),
        "num_refused_answers": predictions.num_finished_by("content_filter"),
    }
