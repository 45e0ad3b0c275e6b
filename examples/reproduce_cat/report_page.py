"""Fills the page's template with the numbers of the CSV files."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pools import POOLS, SOURCES
from report_claims import CLAIMS, CLEAN, OURS, PAPER, everywhere, fit_of
from report_contrasts import BASELINE, CAT, MINUS, PLACEBO, PRIMARY_PAIRS, RANDOM
from report_figures import DRAWN_ARMS, TITLES
from report_read import Row
from report_runs import ALL
from report_runs import WITHIN as WITHIN_TASK
from report_stats import (
    CONTRADICTED,
    ENOUGH_SEEDS,
    MARGIN,
    MIN_LEAD,
    REPRODUCED,
    UNDECIDED,
    UNFIT,
    word,
)
from scales import ADDED, CONDITIONS

TEMPLATE = "reproduction.md.j2"
WANTED_EXAMPLES = 3000
STATED = tuple(MINUS.join(pair) for pair in (*PRIMARY_PAIRS, PLACEBO))
Tables = Mapping[str, Sequence[Row]]
SUMMARY = (
    (CAT + MINUS + RANDOM, "audc"),
    (CAT + MINUS + BASELINE, "audc"),
    (CAT + MINUS + BASELINE, "audc_over_random"),
)
"""Contrast and measure of each cell of the first table."""
LONG_TITLES = {
    "clean": "clean labels",
    "noisy20-clean-teacher": "20 % of the labels wrong, teacher trained on clean ones",
    "noisy20-noisy-teacher": "20 % of the labels wrong, for the teacher too",
    "noisy40-clean-teacher": "40 % of the labels wrong, teacher trained on clean ones",
    "noisy40-noisy-teacher": "40 % of the labels wrong, for the teacher too",
}
MEASURES = {
    (ALL, "audc"): "AUDC",
    (ALL, "quality_small"): "small model alone",
    (ALL, "audc_over_random"): "AUDC above random deferral",
    (WITHIN_TASK, "audc"): "AUDC within tasks",
    (WITHIN_TASK, "audc_over_random"): "within tasks above random deferral",
}


def page(tables: Tables, pictures: Sequence[tuple[str, str, str]], results: str) -> str:
    """The page in Markdown.

    Args:
        tables: name of the CSV file -> its lines.
        pictures: pool, path from the page, and alternative text of every figure.
        results: path from the page to the CSV files.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters |= {
        "signed": signed, "share": share, "plain": plain, "ends": ends, "count": count,
        "minus": lambda text: text.replace(MINUS, " \N{MINUS SIGN} "),
    }  # fmt: skip
    content = environment.get_template(TEMPLATE).render(context(tables, pictures, results))
    return "\n".join(line.rstrip() for line in content.splitlines()) + "\n"


def context(tables: Tables, pictures: Sequence[tuple[str, str, str]], results: str) -> Row:
    """Variables of the template."""
    claims = tables["claims"]
    pools = list(dict.fromkeys(row["pool"] for row in tables["progress"]))
    sources = dict.fromkeys(s for pool in pools for s in POOLS[pool].shares)
    return {
        "pools": [_pool(tables, pool, pictures) for pool in pools],
        "claims": {name: _claims(claims, name) for name in (OURS, PAPER)},
        "tally": _tally(claims), "in_unfit": _tally([r for r in claims if r["fit"] == UNFIT]),
        "answers": {claim.name: _answers(claims, claim.name) for claim in CLAIMS},
        "control_stands": everywhere(claims, "positive-control"),
        "unfinished": [row for row in tables["progress"] if row["state"] != "finished"],
        "power": [row for row in tables["power"] if row["contrast"] in (None, *STATED)],
        "rules": [row for row in tables.get("rules", ()) if not _same_as_average(row)],
        "a1_a2": [row for row in tables.get("a1_a2", ()) if row["condition"] == CLEAN],
        "setup": {row["fact"]: row["value"] for row in tables["setup"]},
        "sources": {name: SOURCES[name] for name in sources},
        "results": results, "conditions": tuple(CONDITIONS),
        "added": any(row["condition"] in ADDED for row in tables["progress"]),
        "constants": {"margin": MARGIN, "lead": MIN_LEAD, "seeds": ENOUGH_SEEDS,
                      "examples": WANTED_EXAMPLES},
        "marks": (REPRODUCED, CONTRADICTED, UNDECIDED),
        "run_hours": _hours(tables["runs"]),
    }  # fmt: skip


def _pool(tables: Tables, pool: str, pictures: Sequence[tuple[str, str, str]]) -> Row:
    own = {name: [row for row in rows if row.get("pool") == pool] for name, rows in tables.items()}
    fits = own.get("pools", [])
    conditions = [name for name in TITLES if any(row["condition"] == name for row in own["runs"])]
    return {
        "name": pool, "unit": "next tokens" if POOLS[pool].is_text else "test examples",
        "unfit": [row for row in fits if row["fit"] == UNFIT],
        "lead": min((row["lead"] for row in fits), default=None),
        "num_test_examples": fits[0]["num_test_examples"] if fits else None,
        "conditions": [_condition(own, name) for name in conditions],
        "pictures": [picture for picture in pictures if picture[0] == pool],
    }  # fmt: skip


def _condition(own: Tables, condition: str) -> Row:
    runs = [row for row in own["runs"] if row["condition"] == condition]
    contrasts = [row for row in own.get("contrasts", ()) if row["condition"] == condition]
    arms = [arm for arm in DRAWN_ARMS if any(row["arm"] == arm for row in runs)]
    arms.sort(key=lambda arm: (arm != BASELINE, DRAWN_ARMS.index(arm)))
    targets = [row["target_quality"] for row in runs if row["arm"] == BASELINE]
    target = targets[0] if targets else None
    primary = [
        {**row, "measure_name": MEASURES[row["task"], row["measure"]]}
        for row in contrasts
        if (row["task"], row["measure"]) in MEASURES
        and (row["measure"] == "audc" or row["role"] == "primary")
        and row["role"] != "other"
    ]
    return {
        "name": condition, "title": LONG_TITLES[condition], "target": target,
        "arms": [_arm(runs, contrasts, arm, target) for arm in arms], "primary": primary,
        "tasks": _tasks(contrasts), "summary": [_difference(primary, *cell) for cell in SUMMARY],
        "facts": next(row for row in own["pools"] if row["condition"] == condition),
        "unfit": fit_of(own, runs[0]["pool"], condition) == UNFIT,
    }  # fmt: skip


def _difference(contrasts: Sequence[Row], contrast: str, measure: str) -> Row | None:
    """One contrast over all tasks; None if it was not measured."""
    wanted = (contrast, ALL, measure)
    found = (row for row in contrasts if (row["contrast"], row["task"], row["measure"]) == wanted)
    return next(found, None)


def _tasks(contrasts: Sequence[Row]) -> list[Row]:
    """For each decided primary contrast, the number of tasks in which it is above and below."""
    own = [row for row in contrasts if row["role"] == "primary" and row["measure"] == "audc"
           and row["task"] not in (ALL, WITHIN_TASK)]  # fmt: skip
    words = {name: [word(row["verdict"]) for row in own if row["contrast"] == name]
             for name in dict.fromkeys(row["contrast"] for row in own)}  # fmt: skip
    return [{"contrast": name, "num_tasks": len(found), **Counter(found)}
            for name, found in words.items() if UNDECIDED not in found]  # fmt: skip


def _arm(runs: Sequence[Row], contrasts: Sequence[Row], arm: str, target: float | None) -> Row:
    own = [row for row in runs if row["arm"] == arm]
    same = target is not None and all(row["target_quality"] == target for row in own)
    names = ("quality_small", "audc", "audc_over_random", "within_task_audc_over_random",
             "keep_fraction")  # fmt: skip
    return {
        "arm": arm, "num_seeds": len(own),
        **{name: _mean(own, name) for name in names},
        "cost": _mean(own, "cost_at_quality") if same else None,
        "short": sum(row["reaches_target"] == "no" for row in own),
        "to_xent": _difference(contrasts, arm + MINUS + BASELINE, "audc"),
    }  # fmt: skip


def _mean(rows: Sequence[Row], name: str) -> float | None:
    values = [row[name] for row in rows if row[name] is not None]
    return fmean(values) if values else None


def _claims(rows: Sequence[Row], source: str) -> list[list[Row]]:
    """Lines grouped by claim and pool."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row["source"] == source:
            groups.setdefault((row["claim"], row["pool"]), []).append(row)
    return list(groups.values())


def _tally(rows: Sequence[Row]) -> Mapping[str, int]:
    """Mark -> number of (claim, pool) pairs of the paper's claims."""
    return Counter(group[0]["marked"] for group in _claims(rows, PAPER))


def _answers(rows: Sequence[Row], name: str) -> list[Row]:
    """The answer of each pool: yes, the opposite, or the reason why there is none."""
    found: dict[str | None, list[Row]] = {}
    for row in rows:
        if row["claim"] == name:
            found.setdefault(row["pool"], []).append(row)
    return [{"pool": pool, "word": _answer(own)} for pool, own in found.items()]


def _answer(own: Sequence[Row]) -> str:
    if not any(row["num_seeds"] for row in own):
        return "not measured"
    if own[0]["fit"] == UNFIT:
        return "the pool is unfit"
    if any(row["verdict"] is None or word(row["verdict"]) == UNDECIDED for row in own):
        return "too few seeds"
    words = {REPRODUCED: "yes", CONTRADICTED: "no, the opposite", UNDECIDED: "not shown"}
    return words[own[0]["marked"]]


def _same_as_average(row: Row) -> bool:
    """Whether a rule orders the examples like `average`; most do on one-token answers."""
    return bool(row["verdict"]) and all(row[name] == 0.0 for name in ("mean", "low", "high"))


def _hours(runs: Sequence[Row]) -> float:
    return sum(row["seconds"] or 0.0 for row in runs) / 3600


def signed(value: float | None) -> str:
    """Format a difference with its sign."""
    if value is None:
        return "\N{EN DASH}"
    text = f"{value:+.4f}".replace("-", "\N{MINUS SIGN}")
    return text if text.strip("+\N{MINUS SIGN}0.") else "0.0000"


def plain(value: float | None, digits: int = 4) -> str:
    """Format a number."""
    return "\N{EN DASH}" if value is None else f"{value:.{digits}f}"


def share(value: float | None) -> str:
    """Format a fraction as percent."""
    return "\N{EN DASH}" if value is None else f"{100 * value:.1f} %"


def count(value: float | None) -> str:
    """Format a count with thousands separators."""
    return "\N{EN DASH}" if value is None else f"{value:,.0f}"


def ends(row: Row | None, prefix: str = "") -> str:
    """Format an interval of a line."""
    if row is None or row[f"{prefix}low"] is None:
        return "\N{EN DASH}"
    return f"[{signed(row[f'{prefix}low'])}, {signed(row[f'{prefix}high'])}]"
