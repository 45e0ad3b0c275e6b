"""`caskd eval --next-token`: the files of a report on next tokens."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from caskd.eval.answers import label_seeds, split_name
from caskd.eval.config import EvalConfig
from caskd.eval.curves import curve_figures
from caskd.eval.next_token.measure import (
    MAIN_RULE,
    StudentResult,
    differences,
    measure_student,
)
from caskd.eval.next_token.own_texts import own_acceptance, own_lines
from caskd.eval.next_token.plot import next_token_figure
from caskd.eval.next_token.routed import check_router_flags, rows_of, share_rows, unseen_rows
from caskd.eval.next_token.table_rows import (
    Found,
    NextTokenAnalysis,
    curve_rows,
    difference_rows,
    rule_rows,
    student_rows,
)
from caskd.eval.report import (
    FORMAT,
    Heads,
    Part,
    Picture,
    Plot,
    Report,
    Section,
    area_fields,
    build_files,
    check_folder,
    contrast_fields,
    contrast_table,
    difference_line,
    file_names,
    questions_line,
    table,
)
from caskd.eval.study import seed_warnings
from caskd.store import TeacherStore
from caskd.store.errors import UsageError, unread_flags
from caskd.store.format import check_imported
from caskd.store.io import strip_control, tell

if TYPE_CHECKING:
    from caskd.eval.next_token.teacher_forcing import StoreRows
    from caskd.models.decoding import TokenRouter

FORMAT_VERSION = 1
_READ = (
    "next_token", "student", "out", "limit", "router", "teacher_parameters", "accept_imported",
    "token_cascade",
)  # fmt: skip
"""Fields of the config that this report reads."""
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


_SHARES: Heads = {
    "student": ("student", "text"), "rule": ("rule", "text"), "large_share": ("share", ".1%"),
    "accuracy": ("accuracy", ".4f"), "acceptable": ("acceptable", ".4f"),
    "activated_parameters": ("parameters per token", ",.0f"),
}  # fmt: skip


def next_token_report(config: EvalConfig) -> Report:
    """Measure every student against the store's teacher.

    Raises:
        UsageError: a flag is wrong, or the store or a student cannot be read.
        IdentityError: a student's vocabulary is not the store's.
    """
    from caskd.eval.next_token.teacher_forcing import check_teacher, store_rows
    from caskd.models.decoding import open_router

    _check_flags(config)
    check_folder(Path(config.out))
    assert config.next_token is not None, "evaluate() checks it"
    store = TeacherStore.open(config.next_token)
    check_teacher(store, f"--next-token {config.next_token}")
    accept = None if config.accept_imported else "--accept-imported"
    check_imported(store.spec, f"--next-token {config.next_token}", accept)
    router = None if config.router is None else open_router(config.router, _flag(config))
    teacher = store_rows(store, config.limit)
    students = _labeled(config.student)
    folders = [folder for _, _, folder in students]
    own = own_acceptance(config.token_cascade, folders, store.spec.identity["teacher"])
    results = [_measure(*student, store, teacher, config, router) for student in students]
    if router is not None:
        teacher = rows_of(teacher, unseen_rows(router, teacher, _flag(config)))
    found = differences(results)
    summary = _summary(store, teacher, results, found)
    for index, figures in own.items():
        summary["students"][index]["own_texts"] = figures
    if router is not None:
        names = ("label", "threshold", "recall_target", "student", "store", "digest")
        summary["router"] = {name: router.description[name] for name in names}
    shares = [row for one in results for row in share_rows(one, config.teacher_parameters, router)]
    analysis = NextTokenAnalysis(summary, results, found, shares)
    title = f"Next tokens: cascades with {strip_control(store.spec.teacher)} as the large model"
    files = build_files(CONTENTS, analysis, title, summary)
    return Report(summary, files, partial(_show, analysis))


def _flag(config: EvalConfig) -> str:
    return f"--router {config.router}"


def _check_flags(config: EvalConfig) -> None:
    check_router_flags(config)
    if not config.student:
        raise UsageError(
            "--next-token: no student; expected at least one; pass --student DIR, once for each"
        )
    if others := unread_flags(config, _READ):
        raise UsageError(
            f"--next-token: was given with {', '.join(others)}, of the measures of answers; "
            "expected --student without them; omit those, or omit --next-token"
        )
    if config.limit is not None and config.limit < 1:
        raise UsageError(f"--limit {config.limit}: expected 1 or more; pass another number")


def _labeled(students: Sequence[str]) -> list[tuple[str, str, str]]:
    """Label, arm and folder of each; folders of one NAME are seeds of an arm."""
    named = [split_name(value) for value in students]
    names = [strip_control(name or Path(folder).resolve().name) for name, folder in named]
    labeled = label_seeds(names, {strip_control(name) for name, _ in named if name})
    return [(*names, folder) for names, (_, folder) in zip(labeled, named, strict=True)]


def _measure(
    label: str,
    arm: str,
    folder: str,
    store: TeacherStore,
    teacher: "StoreRows",
    config: EvalConfig,
    router: "TokenRouter | None",
) -> StudentResult:
    from caskd.eval.next_token.teacher_forcing import student_rows as read_student
    from caskd.models.decoding import load_for_decoding

    loaded = load_for_decoding(folder, "--student")
    scorer = None if router is None else router.scorer(loaded, _flag(config))
    rows = read_student(loaded, store, config.limit, scorer)
    if router is not None:
        unseen = unseen_rows(router, teacher, _flag(config))
        rows, teacher = rows_of(rows, unseen), rows_of(teacher, unseen)
    return measure_student(label, arm, loaded.identity, rows, teacher, store.spec.tasks)


def _summary(
    store: TeacherStore,
    teacher: "StoreRows",
    results: Sequence[StudentResult],
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
            "imported_from": store.spec.imported_from,
        },
        "num_rows": len(teacher.right),
        "num_examples": len(np.unique(teacher.examples)),
        "num_questions": len(np.unique(teacher.questions)),
        "teacher": {
            "accuracy": float(teacher.right.mean()),
            "label_logprob": float(teacher.label_logprob.mean()),
        },
        "students": [_student(result) for result in results],
        "differences": [area_fields(contrast) for contrast in found[0]],
        "contrasts": [contrast_fields(contrast) for contrasts in found for contrast in contrasts],
        "warnings": list(seed_warnings([result.arm for result in results])),
    }


def _student(result: StudentResult) -> dict[str, Any]:
    low, high = result.area_interval()
    return {
        "label": result.label,
        "arm": result.arm,
        "model": dict(result.identity),
        "label_logprob": float(result.rows.label_logprob.mean()),
        "expected_acceptance": list(result.acceptance),
        "audc_low": low,
        "audc_high": high,
        "rules": {rule: result.figures(rule) for rule in result.curves},
        "tasks": {
            strip_control(task): curve_figures(curve) for task, curve in result.tasks.items()
        },
    }


def _overview(analysis: NextTokenAnalysis, pictures: Mapping[str, Picture]) -> Section:
    summary = analysis.summary
    where = summary["store"]
    texts = [
        f"{summary['num_rows']:,} next tokens of {summary['num_examples']:,} examples of the store "
        f"{where['name']}, under teacher forcing: no text is generated. Each token is its own "
        f"decision: keep the student's likeliest token, or defer to that of {where['teacher']} "
        f"where the student is unsure. Rule of the main figures: {MAIN_RULE}.",
        f"{_questions(summary)}.",
    ]
    note = (
        "Quality is the share of right tokens. Intervals resample questions with all of their "
        "tokens, and the seeds of an arm that has several; intervals over seeds alone are "
        "Student's t. AUDC is the area under accuracy over deferral rate; APGR is the share of the "
        "teacher's lead that the cascade recovers, averaged over rates."
    )
    return Section(
        warnings=summary["warnings"],
        texts=texts,
        bullets=[
            *_difference_lines(analysis),
            *(f"{result.label}: {_acceptance_text(result)}" for result in analysis.results),
            *own_lines(summary),
        ],
        pictures=[pictures["next_token"]],
        tables=[table(_STUDENTS, student_rows(analysis), "Accuracy of the cascade")],
        notes=[note],
    )


def _acceptance_text(result: StudentResult) -> str:
    least, most = result.acceptance
    return (
        f"as a draft model, {least:.4f} to {most:.4f} of its tokens expected to be accepted "
        "(speculative sampling; bounds from the stored top-k)"
    )


def _questions(summary: Mapping[str, Any]) -> str:
    return questions_line(summary["num_examples"], summary["num_questions"])


def _resampled(summary: Mapping[str, Any]) -> str:
    return "examples" if summary["num_examples"] == summary["num_questions"] else "questions"


def _difference_lines(analysis: NextTokenAnalysis) -> Iterator[str]:
    for contrast in analysis.differences[0]:
        yield difference_line(contrast, _resampled(analysis.summary))


def _more_differences(analysis: NextTokenAnalysis, _: Mapping[str, Picture]) -> Section | None:
    more = [contrast for contrasts in analysis.differences[1:] for contrast in contrasts]
    if not more:
        return None
    return Section("Differences", tables=[contrast_table(more, "By other measures")])


def _rules(analysis: NextTokenAnalysis, _: Mapping[str, Picture]) -> Section:
    shares = table(_SHARES, analysis.shares, "Quality at shares of the teacher's tokens")
    return Section("Rules", tables=[table(_RULES, rule_rows(analysis)), shares])


CONTENTS = (
    Part(
        tables={"next_token": student_rows, "next_token_curve": curve_rows},
        plots={
            "next_token": Plot(
                "Next-token accuracy over deferral rate",
                lambda analysis: next_token_figure(analysis.results),
            )
        },
        section=_overview,
    ),
    Part(tables={"differences": difference_rows}, section=_more_differences),
    Part(
        tables={
            "next_token_rules": rule_rows,
            "next_token_shares": lambda analysis: analysis.shares,
        },
        section=_rules,
    ),
)
"""The parts of a report on next tokens, in the order of the page."""
NEXT_TOKEN_FILES = file_names(CONTENTS)


def _show(analysis: NextTokenAnalysis) -> None:
    for line in _lines(analysis):
        tell(line)


def _lines(analysis: NextTokenAnalysis) -> Iterator[str]:
    summary = analysis.summary
    teacher = summary["teacher"]["accuracy"]
    yield f"{summary['num_rows']:,} next tokens, teacher {teacher:.4f}"
    if _resampled(summary) == "questions":
        yield _questions(summary)
    for result in analysis.results:
        curve, (low, high) = result.curve, result.area_interval()
        yield (
            f"{result.label}: {curve.quality_small:.4f}, AUDC {curve.audc:.4f} "
            f"[{low:.4f}, {high:.4f}] by {MAIN_RULE}, random "
            f"{curve.random_audc:.4f}, oracle {curve.oracle_audc:.4f}"
        )
        yield f"{result.label}: {_acceptance_text(result)}"
    yield from own_lines(summary)
    yield from _difference_lines(analysis)
    for warning in summary["warnings"]:
        yield f"Warning: {warning}"
