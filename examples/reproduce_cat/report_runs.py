"""Tables of single runs: figures, training, curves, and progress of the plan."""

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import groupby
from pathlib import Path
from statistics import fmean

import numpy as np
from report_read import OBJECTIVES, REPORT, Report, Row, Study, Work, read_lines
from report_stats import FIT, MIN_LEAD, UNFIT, binned

ALL, WITHIN = "all", "within_task"
NUM_BINS = 20
RATES = np.linspace(0.0, 1.0, 101)
_FIGURES = ("num_examples", "quality_small", "quality_large", "audc", "random_audc",
            "audc_over_random")  # fmt: skip
_COSTS = ("rate_at_quality", "cost_at_quality", "reaches_target")
_TRAINED = ("keep_fraction", "teacher_accuracy")


def progress_rows(work: Work) -> Iterator[Row]:
    """Every planned arm with its number of finished seeds."""
    for study in work.studies:
        for arm, planned in study.planned.items():
            done, report = len(study.finished(arm)), study.holding(arm)
            state = "finished" if done == len(planned) else "unfinished" if done else "not begun"
            measured = len(report.seeds[arm]) if report else 0
            yield {
                **study.keys, "arm": arm, "planned_seeds": len(planned), "finished_seeds": done,
                "measured_seeds": measured, "state": state,
            }  # fmt: skip


def run_rows(work: Work) -> Iterator[Row]:
    """One line for every measured run."""
    for study in work.studies:
        for (arm, seed), figures in _measured(study).items():
            metrics = _metrics(study.run(arm, seed))
            path = study.run(arm, seed).relative_to(work.folder).as_posix()
            yield {
                **study.keys, "arm": arm, "seed": seed,
                "steps": metrics[-1]["step"] if metrics else None, **figures,
                "keep_fraction": fmean(m["keep_fraction"] for m in metrics) if metrics else None,
                "seconds": work.seconds.get(path),
            }  # fmt: skip


def _measured(study: Study) -> dict[tuple[str, int], Row]:
    """Figures of every run, from the first report that holds it."""
    found: dict[tuple[str, int], Row] = {}
    for name in (REPORT, OBJECTIVES):
        report = study.reports.get(name)
        for run, figures in _report_runs(report).items() if report else ():
            found.setdefault(run, figures)
    return found


def _report_runs(report: Report) -> dict[tuple[str, int], Row]:
    if report.summary.get("kind") == "next-token":
        lines = [{**row, "small": row["student"]} for row in report.table("next_token")]
    else:
        lines = report.table("seeds")
    by_run: dict[tuple[str, int], dict[str, Row]] = defaultdict(dict)
    for row in lines:
        by_run[report.runs[row["small"]]][row["task"]] = row
    return {
        run: {
            **{name: tasks[ALL][name] for name in _FIGURES},
            "within_task_audc": tasks.get(WITHIN, {}).get("audc"),
            "within_task_audc_over_random": tasks.get(WITHIN, {}).get("audc_over_random"),
            "target_quality": report.summary.get("target_quality"),
            **{name: tasks[ALL].get(name) for name in _COSTS},
        }
        for run, tasks in by_run.items()
    }


def _metrics(run: Path) -> list[Row]:
    """Lines of metrics.jsonl."""
    path = run / "run" / "metrics.jsonl"
    return read_lines(path) if path.exists() else []


def keep_rows(work: Work) -> Iterator[Row]:
    """Fractions of rows that are kept and that the teacher predicts, by step, mean over seeds."""
    for study in work.studies:
        for arm in study.planned:
            runs = [_metrics(study.run(arm, seed)) for seed in study.finished(arm)]
            bins = [_bins(metrics) for metrics in runs if metrics]
            for number, own in enumerate(zip(*bins, strict=False)):
                keep = [line["keep_fraction"] for line in own]
                yield {
                    **study.keys, "arm": arm, "bin": number,
                    "first_step": own[0]["first_step"], "last_step": own[0]["last_step"],
                    **{name: fmean(line[name] for line in own) for name in _TRAINED},
                    "lowest_seed": min(keep), "highest_seed": max(keep), "num_seeds": len(own),
                }  # fmt: skip


def _bins(metrics: Sequence[Row]) -> list[Row]:
    steps = [line["step"] for line in metrics]
    columns = [binned(steps, [line[name] for line in metrics], NUM_BINS) for name in _TRAINED]
    return [
        {"first_step": own[0][0], "last_step": own[0][1],
         **{name: mean for name, (_, _, mean) in zip(_TRAINED, own, strict=True)}}
        for own in zip(*columns, strict=True)
    ]  # fmt: skip


def curve_rows(work: Work) -> Iterator[Row]:
    """Deferral curves, A1 and A2, mean over seeds, at every percent of deferral."""
    for study in work.studies:
        report = study.reports.get(REPORT)
        for arm, curves in seed_curves(report).items() if report else ():
            means = {name: np.mean([c[name] for c in curves], axis=0) for name in curves[0]}
            for index, rate in enumerate(RATES):
                yield {
                    **study.keys, "arm": arm, "deferral_rate": round(float(rate), 2),
                    **{name: float(values[index]) for name, values in means.items()},
                    "num_seeds": len(curves),
                }  # fmt: skip


@cache
def seed_curves(report: Report) -> dict[str, list[dict[str, np.ndarray]]]:
    """Arm -> for each seed: quality, random line and, except for text, A1 and A2 at `RATES`."""
    found = defaultdict(list)
    next_token = report.summary.get("kind") == "next-token"
    rows = report.table("next_token_curve" if next_token else "curve")
    label = "student" if next_token else "small"
    rows = [row for row in rows if not next_token or row["rule"] == report.summary["rule"]]
    for small, group in groupby(rows, key=lambda row: row[label]):
        own = list(group)
        names = {"quality": "accuracy" if next_token else "quality", "random": "random"}
        if not next_token:
            names |= {"a1": "a1", "a2": "a2"}
        x = [row["deferral_rate"] for row in own]
        found[report.runs[small][0]].append(
            {ours: np.interp(RATES, x, [row[name] for row in own]) for ours, name in names.items()}
        )
    return dict(found)


def pool_rows(work: Work, runs: Sequence[Row]) -> Iterator[Row]:
    """Whether a pool is fit: sizes, and the large model's lead over each arm."""
    for study in work.studies:
        for arm in study.planned:
            own = [run for run in runs if (run["pool"], run["condition"], run["arm"])
                   == (study.pool, study.condition, arm)]  # fmt: skip
            report = study.holding(arm)
            if not own or report is None:
                continue
            small, large = (fmean(run[f"quality_{one}"] for run in own)
                            for one in ("small", "large"))  # fmt: skip
            yield {
                **study.keys, "arm": arm, "num_seeds": len(own), "steps": own[0]["steps"],
                "num_test_examples": own[0]["num_examples"],
                "quality_large": large, "quality_small": small, "lead": large - small,
                "fit": FIT if large - small >= MIN_LEAD else UNFIT,
                "teacher_accuracy_in_training": _teacher_accuracy(study, arm),
                **_sizes(study, report, arm),
            }  # fmt: skip


def _teacher_accuracy(study: Study, arm: str) -> float | None:
    """Fraction of the training rows that the teacher predicts."""
    values = [line["teacher_accuracy"] for seed in study.finished(arm)
              for line in _metrics(study.run(arm, seed))]  # fmt: skip
    return fmean(values) if values else None


def _sizes(study: Study, report: Report, arm: str) -> Row:
    summary, sizes = report.summary, {}
    if "large" in summary:
        smalls = {one["arm"]: one["num_parameters"] for one in summary["smalls"]}
        sizes = {"large": summary["large"]["num_parameters"], "small": smalls[arm]}
    data = study.folder.parent / "data"
    return {
        **{f"{one}_parameters": sizes.get(one) for one in ("large", "small")},
        **{f"{part}_examples": _num_lines(data / f"{part}.jsonl")
           for part in ("teacher", "pretrain", "student", "calibration")},
    }  # fmt: skip


def _num_lines(path: Path) -> int | None:
    if not path.exists():
        return None
    with path.open("rb") as file:
        return sum(1 for _ in file)


def setup_rows(work: Work) -> Iterator[Row]:
    """Scale, machine and time, one fact per line."""
    facts = {"scale": work.scale, **work.setup}
    if "." in work.seconds:
        facts["command_hours"] = round(work.seconds["."] / 3600, 2)
    for fact, value in facts.items():
        yield {"fact": fact, "value": value if isinstance(value, (str, int, float))
               else json.dumps(value)}  # fmt: skip
