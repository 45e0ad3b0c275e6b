"""`caskd eval --next-token`: the files of a report on next tokens."""

import json
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from caskd.eval.answers import label_seeds, split_name
from caskd.eval.config import EvalConfig
from caskd.eval.next_token.measure import (
    MAIN_RULE,
    RULES,
    StudentMeasured,
    differences,
    measure_student,
)
from caskd.eval.next_token.plot import next_token_figure, thin
from caskd.eval.next_token.teacher_forcing import StoreRows, store_rows, student_rows
from caskd.eval.report import (
    FORMAT,
    SUMMARY,
    Heads,
    Picture,
    Section,
    area_fields,
    check_folder,
    contrast_fields,
    contrast_table,
    csv_bytes,
    difference_line,
    difference_row,
    html_bytes,
    on_dark,
    png_bytes,
    svg_bytes,
    table,
    write_files,
)
from caskd.eval.study import ALL_TASKS, Contrast, figures
from caskd.models.decoding import load_for_decoding
from caskd.store import TeacherStore
from caskd.store.errors import UsageError
from caskd.store.io import strip_control

FORMAT_VERSION = 1
Found = Sequence[Sequence[Contrast]]
"""Differences by measure, the area first."""
_STUDENTS: Heads = {
    "student": ("student", "text"), "task": ("task", "text"), "num_examples": ("rows", ",d"),
    "quality_small": ("student", ".4f"), "quality_large": ("teacher", ".4f"),
    "audc": ("AUDC", ".4f"), "audc_low": ("95 % from", ".4f"), "audc_high": ("to", ".4f"),
    "random_audc": ("random", ".4f"), "oracle_audc": ("oracle", ".4f"), "apgr": ("APGR", ".3f"),
    "rate_for_large": ("rate for teacher", ".1%"),
}  # fmt: skip
_RULES: Heads = {
    "student": ("student", "text"), "rule": ("rule", "text"), "audc": ("AUDC", ".4f"),
    "apgr": ("APGR", ".3f"), "auroc": ("AUROC", ".3f"),
    **{f"quality_at_{rate}": (f"at {rate} %", ".4f") for rate in (10, 20, 30, 50)},
}  # fmt: skip


def evaluate_next_token(config: EvalConfig) -> dict[str, Any]:
    """Measure every student against the store's teacher and write the report.

    Returns:
        The content of `summary.json`.

    Raises:
        UsageError: a flag is wrong, or the store or a student cannot be read.
        IdentityError: a student's vocabulary is not the store's.
    """
    out = Path(config.out)
    _check_flags(config)
    check_folder(out)
    assert config.next_token is not None, "what brought us here"
    store = TeacherStore.open(config.next_token)
    teacher = store_rows(store, config.limit)
    measured = [
        _measure(*student, store, teacher, config.limit) for student in _labeled(config.student)
    ]
    found = differences(measured)
    summary = _summary(store, teacher, measured, found)
    write_files(out, _files(summary, measured, found))
    for line in _lines(summary, measured, found[0]):
        print(line)
    print(f"report: {out / 'index.html'}")
    return summary


def _check_flags(config: EvalConfig) -> None:
    if not config.student:
        raise UsageError("--next-token needs a student; type --student DIR, once for each")
    if config.small or config.large:
        raise UsageError("got --next-token with --small or --large; expected one way to measure")
    if config.limit is not None and config.limit < 1:
        raise UsageError(f"got --limit {config.limit}, expected 1 or more")


def _labeled(students: Sequence[str]) -> list[tuple[str, str, str]]:
    """Label, arm and folder of each; folders of one NAME are seeds of an arm."""
    named = [split_name(value) for value in students]
    names = [strip_control(name or Path(folder).resolve().name) for name, folder in named]
    labeled = label_seeds(names, {strip_control(name) for name, _ in named if name})
    return [(*one, folder) for one, (_, folder) in zip(labeled, named, strict=True)]


def _measure(
    label: str, arm: str, folder: str, store: TeacherStore, teacher: StoreRows, limit: int | None
) -> StudentMeasured:
    loaded = load_for_decoding(folder, "--student")
    rows = student_rows(loaded, store, limit)
    return measure_student(label, arm, loaded.identity, rows, teacher, store.spec.tasks)


def _summary(
    store: TeacherStore,
    teacher: StoreRows,
    measured: Sequence[StudentMeasured],
    found: Found,
) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "kind": "next-token",
        "version": FORMAT_VERSION,
        "caskd_version": version("caskd"),
        "rule": MAIN_RULE,
        "store": {
            "name": strip_control(store.name),
            "digest": store.digest,
            "teacher": store.spec.teacher,
        },
        "num_rows": len(teacher.right),
        "num_examples": len(np.unique(teacher.examples)),
        "teacher": {
            "accuracy": float(teacher.right.mean()),
            "label_logprob": float(teacher.label_logprob.mean()),
        },
        "students": [_student(one) for one in measured],
        "differences": [area_fields(one) for one in found[0]],
        "contrasts": [contrast_fields(one) for contrasts in found for one in contrasts],
    }


def _student(one: StudentMeasured) -> dict[str, Any]:
    low, high = one.area_interval()
    return {
        "label": one.label,
        "arm": one.arm,
        "model": dict(one.identity),
        "label_logprob": float(one.rows.label_logprob.mean()),
        "audc_low": low,
        "audc_high": high,
        "rules": {rule: one.figures(rule) for rule in RULES},
        "tasks": {strip_control(task): figures(curve) for task, curve in one.tasks.items()},
    }


def _files(
    summary: dict[str, Any], measured: Sequence[StudentMeasured], found: Found
) -> dict[str, bytes]:
    figure = next_token_figure(measured)
    svg = svg_bytes(figure)
    picture = Picture("Next-token accuracy over deferral rate", svg, on_dark(svg))
    files = {
        SUMMARY: json.dumps(summary, indent=2, allow_nan=False).encode(),
        "next_token.png": png_bytes(figure),
        "next_token.svg": svg,
        "next_token.csv": csv_bytes(_student_rows(measured)),
        "next_token_rules.csv": csv_bytes(_rule_rows(measured)),
        "next_token_curve.csv": csv_bytes(_curve_rows(measured)),
        "index.html": _page(summary, measured, found, picture),
    }
    if found[0]:
        rows = (difference_row(one, MAIN_RULE) for contrasts in found for one in contrasts)
        files["differences.csv"] = csv_bytes(rows)
    return files


def _student_rows(measured: Sequence[StudentMeasured]) -> Iterator[dict[str, Any]]:
    seen: list[str] = []
    for one in measured:
        low, high = one.area_interval()
        interval = {"audc_low": low, "audc_high": high}
        keys = {"arm": one.arm, "seed": seen.count(one.arm)}
        seen.append(one.arm)
        yield {"student": one.label, "task": ALL_TASKS, **figures(one.curve), **interval, **keys}
        for task, curve in one.tasks.items():
            none = dict.fromkeys(interval)
            name = strip_control(task)
            yield {"student": one.label, "task": name, **figures(curve), **none, **keys}


def _rule_rows(measured: Sequence[StudentMeasured]) -> Iterator[dict[str, Any]]:
    for one in measured:
        for rule in RULES:
            yield {"student": one.label, "rule": rule, **one.figures(rule)}


def _curve_rows(measured: Sequence[StudentMeasured]) -> Iterator[dict[str, Any]]:
    for one in measured:
        for rule, curve in one.curves.items():
            for place in thin(curve):
                yield {
                    "student": one.label,
                    "rule": rule,
                    "deferral_rate": float(curve.deferral_rate[place]),
                    "threshold": float(curve.threshold[place]),
                    "accuracy": float(curve.quality[place]),
                    "random": float(curve.random[place]),
                }


def _page(
    summary: dict[str, Any],
    measured: Sequence[StudentMeasured],
    found: Found,
    picture: Picture,
) -> bytes:
    where = summary["store"]
    texts = [
        f"{summary['num_rows']:,} next tokens of {summary['num_examples']:,} examples of the store "
        f"{where['name']}, under teacher forcing: no text is generated. Each token is a decision "
        f"of its own: the student's likeliest token is kept, or that of {where['teacher']} is "
        f"taken where the student is unsure. Rule of the main figures: {MAIN_RULE}.",
    ]
    more = [one for contrasts in found[1:] for one in contrasts]
    note = (
        "Quality is the share of tokens that are right. Intervals redraw examples with all of "
        "their tokens, and the seeds of an arm that has several; those over seeds alone are "
        "Student's t. AUDC is the area under accuracy over deferral rate; APGR the share of the "
        "teacher's lead that is recovered, averaged over rates."
    )
    sections = [
        Section(texts=texts, bullets=[*map(difference_line, found[0])], pictures=[picture],
                tables=[table(_STUDENTS, _student_rows(measured), "Accuracy of the cascade")],
                notes=[note]),
        *([Section("Differences", tables=[contrast_table(more, "By other measures")])]
          if more else []),
        Section("Rules", tables=[table(_RULES, _rule_rows(measured))]),
    ]  # fmt: skip
    title = f"Next tokens: cascades with {strip_control(where['teacher'])} as the large model"
    return html_bytes(title, sections, summary["caskd_version"])


def _lines(
    summary: dict[str, Any], measured: Sequence[StudentMeasured], by_area: Sequence[Contrast]
) -> Iterator[str]:
    teacher = summary["teacher"]["accuracy"]
    yield f"{summary['num_rows']:,} next tokens, teacher {teacher:.4f}"
    for one in measured:
        curve, (low, high) = one.curve, one.area_interval()
        yield (
            f"{one.label}: {curve.quality_small:.4f}, AUDC {curve.audc:.4f} [{low:.4f}, {high:.4f}]"
            f" by {MAIN_RULE}, random {curve.random_audc:.4f}, oracle {curve.oracle_audc:.4f}"
        )
    yield from map(difference_line, by_area)
