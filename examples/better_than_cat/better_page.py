"""The page docs/better-than-cat.md, from the tables."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import reproduction  # noqa: F401
from better_contrasts import ABOVE, BELOW, wins_and_gains
from better_plan import AUDC, CAT, CONDITIONS, LEVEL, SCREENED_POOLS
from better_runs import CONFIRMATION, PRETRAINED_STAGE, SCREENING
from jinja2 import Environment, StrictUndefined
from report_read import Row

Tables = Mapping[str, Sequence[Row]]
MINUS, NONE = "\N{MINUS SIGN}", "\N{EN DASH}"
MEASURES = {AUDC: "AUDC", "audc_over_random": "AUDC above random deferral"}
NAMES = dict(zip(CONDITIONS, ("clean labels", "20 % of the labels wrong"), strict=True))
STAGES = {
    SCREENING: "screening", CONFIRMATION: "confirmation", PRETRAINED_STAGE: "pretrained pool",
}  # fmt: skip


def page(found: Tables) -> str:
    """The whole page."""
    template = Path(__file__).with_name("better-than-cat.md.j2").read_text(encoding="utf-8")
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(
        state=_state(found["progress"]),
        verdict=_verdict(found),
        screening="\n\n".join(_screening(found)),
        confirmation=_contrasts(found["contrasts"], CONFIRMATION),
        pretrained=_contrasts(found["contrasts"], PRETRAINED_STAGE),
        unfinished=_unfinished(found["progress"]),
        level=LEVEL,
    )


def left(progress: Sequence[Row], stage: str) -> tuple[int, int]:
    """Finished and planned runs of a stage; none is planned before its arms are chosen."""
    own = [row for row in progress if row["stage"] == stage]
    return sum(row["finished_seeds"] for row in own), sum(row["planned_seeds"] for row in own)


def _state(progress: Sequence[Row]) -> str:
    counts = {stage: left(progress, stage) for stage in STAGES}
    if all(planned and done == planned for done, planned in counts.values()):
        return "All planned runs are finished."
    lines = [
        f"{name}: {done:,} of {planned:,} runs" if planned else f"{name}: not begun"
        for (stage, name), (done, planned) in zip(STAGES.items(), counts.values(), strict=True)
    ]
    return f"**This comparison is not finished** ({'; '.join(lines)}). Numbers below may change."


def _verdict(found: Tables) -> str:
    if all(row["candidate"] == 0 for row in found["screening"]):
        return (
            "**Verdict**: no arm became a candidate: none had a larger mean AUDC than cat-xent and "
            "than its own control. Use `cat-xent`."
        )
    done, planned = left(found["progress"], CONFIRMATION)
    if not planned or done < planned:
        return (
            "**Verdict**: none yet. Screening proposes candidates; only the confirmation can show "
            "that one is better."
        )
    rows = [row for row in found["contrasts"] if row["stage"] == CONFIRMATION]
    wins, _ = wins_and_gains(rows)
    won = [f"`{arm}` (in {count})" for arm, count in wins.items() if count]
    if not won:
        return (
            "**Verdict**: none of these arms was shown to give better cascades than cat-xent. Use "
            "`cat-xent`, or `cat-dist` where the store has the distribution."
        )
    worse = [
        f"`{row['first']}` in {row['pool']}, {NAMES[row['condition']]}"
        for row in rows
        if row["second"] == CAT and row["measure"] == AUDC and row["verdict"] == BELOW
    ]
    also = f" Shown to be worse than cat-xent: {', '.join(worse)}." if worse else ""
    return (
        "**Verdict**: shown to give better cascades than cat-xent and than their random controls, "
        f"by number of pools and conditions: {', '.join(won)}.{also}"
    )


def _screening(found: Tables) -> Iterator[str]:
    for pool in SCREENED_POOLS:
        rows = [row for row in found["screening"] if row["pool"] == pool]
        weights = _mean_weights(found["runs"], pool)
        yield f"### {pool}"
        lines = [
            (
                row["arm"], row["num_runs"], _number(row["audc_gain"]),
                *(_number(row[f"audc_gain_{condition}"]) for condition in CONDITIONS),
                _number(row["over_random_gain"]), _number(row["gain_over_control"]),
                f"{weights[row['arm']]:.3f}", row["candidate"] or NONE,
            )
            for row in sorted(rows, key=lambda row: -(row["audc_gain"] or 0))
        ]  # fmt: skip
        head = ("arm", "runs", "A", *(f"A, {NAMES[one]}" for one in CONDITIONS), "G", "C",
                "mean weight", "candidate")  # fmt: skip
        yield _table(head, lines)
        worse = [row["arm"] for row in rows if (row["audc_gain"] or 0) < 0]
        if worse:
            yield f"Below cat-xent in mean AUDC here: {', '.join(worse)}."


def _mean_weights(runs: Sequence[Row], pool: str) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for run in runs:
        if (run["stage"], run["pool"]) == (SCREENING, pool):
            found.setdefault(run["arm"], []).append(run["mean_weight"])
    return {arm: sum(own) / len(own) for arm, own in found.items()}


def _contrasts(rows: Sequence[Row], stage: str) -> str:
    """Table of the comparisons of a stage; empty if it has none yet."""
    rows = [row for row in rows if row["stage"] == stage]
    lines = [
        (
            row["pool"], NAMES[row["condition"]], f"{row['first']} {MINUS} {row['second']}",
            MEASURES[row["measure"]], _number(row["mean"]),
            _interval(row, ""), _interval(row, "t_"),
            NONE if row["p_holm"] is None else f"{row['p_holm']:.2g}",
            f"{row['num_seeds']} of {row['planned_seeds']}", _bold(row["verdict"]),
        )
        for row in rows
    ]  # fmt: skip
    head = ("pool", "labels", "difference", "measure", "mean", "95 %, questions and seeds",
            "95 %, seeds", "p, Holm", "seeds", "verdict")  # fmt: skip
    return _table(head, lines) if rows else ""


def _unfinished(progress: Sequence[Row]) -> str:
    rows = [row for row in progress if row["finished_seeds"] < row["planned_seeds"]]
    if not rows:
        return ""
    lines = [
        (row["stage"], row["pool"], NAMES[row["condition"]], row["arm"],
         f"{row['finished_seeds']} of {row['planned_seeds']}")
        for row in rows
    ]  # fmt: skip
    head = ("stage", "pool", "labels", "arm", "finished seeds")
    return _table(head, lines)


def _table(head: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(str(cell) for cell in row)} |" for row in rows)


def _number(value: float | None) -> str:
    return NONE if value is None else f"{value:+.4f}".replace("-", MINUS)


def _interval(row: Row, prefix: str) -> str:
    low, high = row[f"{prefix}low"], row[f"{prefix}high"]
    return NONE if low is None else f"[{_number(low)}, {_number(high)}]"


def _bold(verdict: str) -> str:
    return f"**{verdict}**" if verdict in (ABOVE, BELOW) else verdict
