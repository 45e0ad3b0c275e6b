"""Tables of differences between arms, between rules, and of A1 and A2; and their power."""

import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from statistics import fmean

import numpy as np
from report_read import REPORT, RULES, Report, Row, Study, Work
from report_runs import ALL, RATES, WITHIN, seed_curves
from report_stats import (
    PILOT_DEVIATIONS,
    Interval,
    equivalence,
    needed_seeds,
    smallest_difference,
    t_interval,
    verdict,
)
from scales import PRIMARY

MINUS = " - "
BASELINE, CAT, RANDOM = "xent", "cat-xent", "random-xent"
PRIMARY_PAIRS = ((CAT, RANDOM), (CAT, BASELINE))
PLACEBO = (RANDOM, BASELINE)
COST = "cost_at_quality"
OTHER_PAIRS = (
    ("dist", BASELINE), ("cat-dist", "dist"), ("cat-dist", CAT), ("cat-dist", BASELINE),
    ("cat-xent-l", CAT), ("cat-xent-s", CAT), ("cat-dist-l", "cat-dist"),
    ("cat-dist-s", "cat-dist"), ("cat-xent-l", BASELINE), ("cat-xent-s", BASELINE),
    ("cat-dist-l", BASELINE), ("cat-dist-s", BASELINE),
)  # fmt: skip
MEASURES = (
    (ALL, "audc"), (ALL, "quality_small"), (ALL, "audc_over_random"), (WITHIN, "audc"),
    (WITHIN, "audc_over_random"), (ALL, COST),
)  # fmt: skip
"""Task and measure; single tasks follow these, by their AUDC."""
AVERAGE = "average"
A1_A2_RATES = (0.1, 0.2, 0.3, 0.5)


def contrast_rows(work: Work) -> Iterator[Row]:
    """Every planned contrast by every measure, the primary ones first."""
    for study in work.studies:
        for first, second in (*PRIMARY_PAIRS, PLACEBO, *OTHER_PAIRS):
            report = study.holding(first, second)
            for row in _differences(report, first, second) if report else ():
                yield {
                    **study.keys, "contrast": first + MINUS + second,
                    "role": _role(first, second), **row,
                    **_verdicts(study, (first, second), row),
                }  # fmt: skip


def _role(first: str, second: str) -> str:
    pair = first, second
    return "primary" if pair in PRIMARY_PAIRS else "placebo" if pair == PLACEBO else "other"


def _differences(report: Report, first: str, second: str) -> Iterator[Row]:
    """Differences between two arms from `caskd eval`, in the order of `MEASURES`."""
    found = {}
    for row in report.table("differences"):
        if row["first_rule"] != row["second_rule"] or {row["first"], row["second"]} != {
            first, second
        }:  # fmt: skip
            continue
        sign = 1 if row["first"] == first else -1
        found[row["task"], row["measure"]] = {
            "task": row["task"], "measure": row["measure"], "mean": _turn(row["difference"], sign),
            **_ends("", (row["low"], row["high"]), sign),
            **_ends("t_", (row["seed_low"], row["seed_high"]), sign),
            "seed_interval": row["seed_interval"], "num_seeds": row["num_seeds"],
        }  # fmt: skip
    tasks = [key for key in found if key[0] not in (ALL, WITHIN) and key[1] == "audc"]
    yield from (found[key] for key in (*MEASURES, *tasks) if key in found)


def _ends(prefix: str, ends: tuple[float | None, float | None], sign: int) -> Row:
    low, high = (_turn(end, sign) for end in ends[::sign])
    return {f"{prefix}low": low, f"{prefix}high": high}


def _turn(value: float | None, sign: int) -> float | None:
    """The value times the sign; a zero stays positive."""
    return None if value is None else sign * value + 0.0


def intervals(row: Row) -> list[Interval | None]:
    """Both intervals of a line."""
    return [
        None if row[f"{kind}low"] is None else (row[f"{kind}low"], row[f"{kind}high"])
        for kind in ("", "t_")
    ]


def _verdicts(study: Study, arms: Sequence[str], row: Row) -> Row:
    planned = min(len(study.planned[arm]) for arm in arms)
    needed = needed_seeds(planned, primary=set(arms) <= set(PRIMARY) and not study.is_text)
    found = intervals(row), row["num_seeds"], needed
    is_cost = row.get("measure") == COST  # the margin has another unit
    return {
        "verdict": verdict(*found),
        "equivalence": None if is_cost else equivalence(*found),
    }


def rule_rows(work: Work) -> Iterator[Row]:
    """Deferral rules compared with `average` on the same arm and seeds.

    The interval over examples is the mean of the seeds' intervals, which is wider than the interval
    of their mean; t is over the seeds.
    """
    for study in work.studies:
        report = study.reports.get(RULES)
        if report is None:
            continue
        areas, ends = _rule_areas(report), _rule_intervals(report)
        for (arm, rule), by_seed in areas.items():
            average = areas[arm, AVERAGE]
            apart = [by_seed[seed] - average[seed] for seed in by_seed]
            own = ends.get((arm, rule))
            low, high = t_interval(apart) or (None, None)
            row = {
                "mean": fmean(apart), "low": own and own[0], "high": own and own[1],
                "t_low": low, "t_high": high, "num_seeds": len(apart),
            }  # fmt: skip
            about = {"verdict": None, "equivalence": None}
            if rule != AVERAGE:
                about = _verdicts(study, (arm, *_side_arms(study)), row)
            yield {**study.keys, "arm": arm, "rule": rule, "audc": fmean(by_seed.values()),
                   **row, **about}  # fmt: skip


def _side_arms(study: Study) -> list[str]:
    """Arms that are not primary; rules are compared on as many seeds as these have."""
    return [arm for arm in study.planned if arm not in PRIMARY]


def _rule_areas(report: Report) -> dict[tuple[str, str], dict[int, float]]:
    found: dict[tuple[str, str], dict[int, float]] = defaultdict(dict)
    for row in report.table("rules"):
        arm, seed = report.runs[row["small"]]
        found[arm, row["rule"]][seed] = row["audc"]
    return dict(found)


def _rule_intervals(report: Report) -> dict[tuple[str, str], Interval]:
    """(arm, rule) -> interval over examples of the rule minus `average`, averaged over seeds."""
    found: dict[tuple[str, str], list[Interval]] = defaultdict(list)
    for row in report.table("differences"):
        if row["first_rule"] != row["second_rule"]:
            assert row["second_rule"] == AVERAGE, "the first --rule"
            arm, _ = report.runs[row["first"]]
            found[arm, row["first_rule"]].append((row["low"], row["high"]))
    return {
        key: (fmean(low for low, _ in ends), fmean(high for _, high in ends))
        for key, ends in found.items()
    }


def a1_a2_rows(work: Work) -> Iterator[Row]:
    """A1 and A2 of cat-xent minus those of xent, by deferral rate and on average.

    t is over the seeds; examples are not resampled here.
    """
    for study in work.studies:
        report = study.reports.get(REPORT)
        if report is None or not {CAT, BASELINE} <= set(report.seeds):
            continue
        curves = seed_curves(report)
        if "a1" not in curves[CAT][0]:
            continue
        for part in ("a1", "a2"):
            values = {arm: _at_rates(curves[arm], part) for arm in (CAT, BASELINE)}
            for column, rate in enumerate([*A1_A2_RATES, "mean"]):
                ours, theirs = (values[arm][:, column] for arm in (CAT, BASELINE))
                apart = (ours - theirs).tolist()
                low, high = t_interval(apart) or (None, None)
                row = {"mean": fmean(apart), "t_low": low, "t_high": high, "num_seeds": len(apart)}
                found = [t_interval(apart)], len(apart), needed_seeds(0, primary=True)
                yield {
                    **study.keys, "part": part, "deferral_rate": rate,
                    CAT: float(ours.mean()), BASELINE: float(theirs.mean()), **row,
                    "verdict": verdict(*found), "equivalence": equivalence(*found),
                }  # fmt: skip


def _at_rates(curves: Sequence[dict[str, np.ndarray]], part: str) -> np.ndarray:
    """[seeds, rates + 1] A1 or A2 at `A1_A2_RATES`, and its mean over them."""
    found = np.array([np.interp(A1_A2_RATES, RATES, one[part]) for one in curves])
    return np.concatenate([found, found.mean(axis=1, keepdims=True)], axis=1)


def power_rows(work: Work, runs: Sequence[Row]) -> Iterator[Row]:
    """Smallest difference in AUDC with a power of 0.8, beforehand and with the observed spread."""
    for labels, deviation in PILOT_DEVIATIONS:
        for num_seeds in (3, 5, 10):
            keys = {"pool": "pilot", "condition": labels}
            yield _power(keys, None, "beforehand", deviation, num_seeds)
    for study in work.studies:
        areas: dict[str, dict[int, float]] = defaultdict(dict)
        for run in runs:
            if (run["pool"], run["condition"]) == (study.pool, study.condition):
                areas[run["arm"]][run["seed"]] = run["audc"]
        for first, second in (*PRIMARY_PAIRS, PLACEBO, *OTHER_PAIRS):
            seeds = sorted(set(areas[first]) & set(areas[second]))
            if len(seeds) > 1:
                apart = [areas[first][seed] - areas[second][seed] for seed in seeds]
                contrast, spread = first + MINUS + second, statistics.stdev(apart)
                yield _power(study.keys, contrast, "seen", spread, len(seeds))


def _power(keys: Row, contrast: str | None, when: str, deviation: float, num_seeds: int) -> Row:
    return {
        **keys, "when": when, "contrast": contrast, "seed_deviation": deviation,
        "num_seeds": num_seeds, "smallest_difference": smallest_difference(deviation, num_seeds),
    }  # fmt: skip
