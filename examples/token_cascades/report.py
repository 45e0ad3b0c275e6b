"""Tables, figure and section of the evidence on token cascades.

    python report.py WORK [--tables DIR] [--page FILE] [--figure FILE]

Reads what `run.py` has finished in WORK, and writes CSV tables, a picture, and the section
`## Measured` at the end of the page.
"""

import argparse
import csv
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "reproduce_cat"))

from plan import (  # noqa: E402
    ARMS,
    CLAIMS,
    CONTRASTS,
    NEEDS_LARGE,
    ONLINE_ARMS,
    ONLINE_SHARES,
    PLAIN,
    PLAIN_RULES,
    SEEDS,
    SHARES,
)
from report_stats import equivalence, verdict  # noqa: E402
from rows import acceptable, scores  # noqa: E402

from caskd.eval.answers import read_predictions  # noqa: E402
from caskd.eval.curves import curve_figures, deferral_curve  # noqa: E402
from caskd.eval.next_token.measure import example_replicates  # noqa: E402
from caskd.eval.stats import arm_difference  # noqa: E402

Array = npt.NDArray[np.float64]
Row = dict[str, Any]
MEASURES = ("audc", "audc_over_random", "quality_small")
ROOT = HERE.parents[1]
GRID = np.linspace(0.0, 1.0, 51)


class Arm:
    """One arm/rule of a pool over its finished seeds: figures [R], replicates [R, B], curves."""

    def __init__(self) -> None:
        self.seeds: list[int] = []
        self.figures: dict[str, list[float]] = {name: [] for name in MEASURES}
        self.replicates: dict[str, list[Array]] = {name: [] for name in MEASURES}
        self.curves: list[Array] = []
        self.fine: list[Array] = []
        self.oracles: list[Array] = []

    def add(self, seed: int, rows: Mapping[str, Array], score: Array) -> None:
        """Measure one seed."""
        right, large = rows["right"].astype(float), rows["large_right"].astype(float)
        curve = deferral_curve(score, right, large)
        fine = deferral_curve(score, acceptable(rows).astype(float), np.ones_like(right))
        questions = rows["questions"].astype(np.int64)
        replicates = example_replicates(score, right, large, questions)
        figures = curve_figures(curve)
        self.seeds.append(seed)
        for name in MEASURES:
            self.figures[name].append(float(figures[name]))
            self.replicates[name].append(replicates[name])
        self.curves.append(np.interp(GRID, curve.deferral_rate, curve.quality))
        self.fine.append(np.interp(GRID, fine.deferral_rate, fine.quality))
        self.oracles.append(np.interp(GRID, curve.oracle_rate, curve.oracle_quality))

    def of(self, name: str, seeds: Iterable[int]) -> tuple[Array, Array]:
        """Figures and replicates of some seeds."""
        places = [self.seeds.index(seed) for seed in seeds]
        return (
            np.array([self.figures[name][i] for i in places]),
            np.stack([self.replicates[name][i] for i in places]),
        )

    def at(self, share: float, curves: list[Array]) -> float:
        """Mean quality at a share of large tokens."""
        return float(np.interp(share, GRID, np.mean(curves, axis=0)))


def measure(work: Path, pool: str) -> dict[str, Arm]:
    """Every arm/rule of a pool."""
    found: dict[str, Arm] = {}
    for arm in ARMS[pool]:
        for seed in SEEDS:
            file = work / pool / "clean" / f"{arm}-{seed}" / "test.npz"
            if not file.exists():
                continue
            with np.load(file) as content:
                rows = dict(content)
            for rule, score in scores(rows, arm).items():
                if arm == PLAIN or rule == "call":
                    name = f"{arm}/{rule}"
                    found.setdefault(name, Arm()).add(seed, rows, score.astype(float))
    return found


def quality_rows(pool: str, found: Mapping[str, Arm]) -> Iterator[Row]:
    """Quality of each arm/rule at each share."""
    for name, one in found.items():
        row: Row = {"pool": pool, "arm": name, "seeds": len(one.seeds)}
        row |= {measure: round(float(np.mean(one.figures[measure])), 4) for measure in MEASURES}
        for share in SHARES:
            row[f"accuracy_at_{share:g}"] = round(one.at(share, one.curves), 4)
            row[f"acceptable_at_{share:g}"] = round(one.at(share, one.fine), 4)
        yield row


def contrast(found: Mapping[str, Arm], pair: tuple[str, str], measure: str) -> Row | None:
    """One difference with both intervals; None where an arm has no finished seed."""
    if not all(name in found for name in pair):
        return None
    first, second = (found[name] for name in pair)
    seeds = sorted(set(first.seeds) & set(second.seeds))
    if not seeds:
        return None
    difference = arm_difference(first.of(measure, seeds), second.of(measure, seeds))
    over = difference.over_seeds
    intervals = [(difference.low, difference.high), None if over is None else (over.low, over.high)]
    return {
        "first": pair[0],
        "second": pair[1],
        "measure": measure,
        "difference": round(difference.value, 4),
        "low": round(difference.low, 4),
        "high": round(difference.high, 4),
        "seeds_low": None if over is None else round(over.low, 4),
        "seeds_high": None if over is None else round(over.high, 4),
        "seeds": len(seeds),
        "verdict": verdict(intervals, len(seeds), len(SEEDS)),
        "equivalence": equivalence(intervals, len(seeds), len(SEEDS)),
    }


def claim_rows(found: Mapping[str, Arm]) -> Iterator[Row]:
    """The claims, each reproduced, contradicted or undecided."""
    for words, pair, measure, expected in CLAIMS:
        row = contrast(found, pair, measure)
        answer = "undecided (not run)"
        if row is not None and expected == "above":
            answers = {"above": "reproduced", "below": "contradicted"}
            answer = answers.get(row["verdict"], "undecided")
        elif row is not None:
            answers = {"within 0.01": "reproduced", "outside 0.01": "contradicted"}
            answer = answers.get(row["equivalence"], "undecided")
        yield {"claim": words, "result": answer, **(row or {"first": pair[0], "second": pair[1]})}


def online_rows(work: Path, pool: str) -> Iterator[Row]:
    """Share and quality of the answers that two models wrote together."""
    root = work / pool
    if not (root / "online-large.parquet").exists():
        return
    large = read_predictions(str(root / "online-large.parquet")).numbers("quality")
    wanted = [(PLAIN, rule) for rule in (*PLAIN_RULES, NEEDS_LARGE)]
    for arm, rule in [*wanted, *((arm, "call") for arm in ONLINE_ARMS)]:
        for share in ONLINE_SHARES:
            rows = []
            for seed in SEEDS:
                file = root / "clean" / f"{arm}-{seed}" / f"online-{rule}-{share:g}.parquet"
                alone = root / "clean" / f"{PLAIN}-{seed}" / "online-small.parquet"
                if file.exists() and alone.exists():
                    written = read_predictions(str(file))
                    tokens = written.numbers("output_tokens").sum()
                    found = float(written.numbers("num_large_tokens").sum() / tokens)
                    small = float(read_predictions(str(alone)).numbers("quality").mean())
                    straight = small + found * (float(large.mean()) - small)
                    quality = float(written.numbers("quality").mean())
                    rows.append((found, quality, quality - straight, small))
            if rows:
                means = np.mean(rows, axis=0)
                spread = np.std(rows, axis=0, ddof=1) if len(rows) > 1 else np.full(4, np.nan)
                yield {
                    "pool": pool, "arm": f"{arm}/{rule}", "offline_share": share,
                    "online_share": round(means[0], 4), "online_share_sd": round(spread[0], 4),
                    "quality": round(means[1], 4), "above_straight_line": round(means[2], 4),
                    "above_sd": round(spread[2], 4), "plain_small_alone": round(means[3], 4),
                    "large_alone": round(float(large.mean()), 4), "seeds": len(rows),
                }  # fmt: skip


def draw(pools: Mapping[str, Mapping[str, Arm]], file: Path) -> None:
    """Accuracy over the share of large tokens, by pool."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * len(pools), 4.2), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(pools)))
    for axes, (pool, found) in zip(panels, pools.items(), strict=True):
        for number, (name, one) in enumerate(found.items()):
            style = "-" if name.startswith(PLAIN) else "--"
            mean = np.mean(one.curves, axis=0)
            axes.plot(GRID, mean, style, color=f"C{number % 10}", lw=1.2, label=name)
        if f"{PLAIN}/entropy" in found:
            oracle = np.mean(found[f"{PLAIN}/entropy"].oracles, axis=0)
            axes.plot(GRID, oracle, ":", color="0.4", lw=1.2, label="oracle")
        axes.set_title(f"{pool}: next tokens")
        axes.set_xlabel("share of the large model's tokens")
        axes.set_ylabel("accuracy")
        axes.legend(fontsize=6)
    figure.savefig(file, metadata={"Date": None})


def write(file: Path, rows: list[Row]) -> None:
    """Write a CSV table."""
    if not rows:
        return
    fields = list(dict.fromkeys(name for row in rows for name in row))
    with file.open("w", newline="") as out:
        writer = csv.DictWriter(out, fieldnames=fields)
        writer.writeheader()
        writer.writerows(rows)


def table(rows: list[Row], names: Mapping[str, str]) -> str:
    """A table of the page."""
    head = ["| " + " | ".join(names.values()) + " |", "|" + "---|" * len(names)]
    cells = (" | ".join(_cell(row.get(name)) for name in names) for row in rows)
    return "\n".join([*head, *(f"| {line} |" for line in cells)])


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    return "" if value is None else str(value)


def section(tables: Mapping[str, list[Row]], figure: str) -> str:
    """The section of the page."""
    quality = {"pool": "pool", "arm": "student/rule", "seeds": "seeds", "audc": "area"}
    quality |= {"quality_small": "small alone"}
    quality |= {f"accuracy_at_{share:g}": f"accuracy at {share:.0%}" for share in SHARES}
    quality |= {f"acceptable_at_{share:g}": f"acceptable at {share:.0%}" for share in SHARES}
    pair = {"first": "first", "second": "second", "difference": "difference"}
    ends = {"low": "95 % from", "high": "to", "seeds_low": "over seeds from", "seeds_high": "to"}
    online = {"arm": "student/rule", "offline_share": "offline share"}
    online |= {"online_share": "online share", "quality": "quality"}
    online |= {"above_straight_line": "above the straight line", "above_sd": "its s.d. over seeds"}
    areas = [row for row in tables["contrasts"] if row["measure"] == "audc"]
    text = (HERE / "section.txt").read_text(encoding="utf-8")
    answers = ""
    if tables["online"]:
        answers = (
            "\nAnswers of both models, with thresholds from another part of the data at which the "
            "offline share holds. The\nstraight line mixes both models at random.\n\n"
        ) + table(tables["online"], online | {"seeds": "seeds"})
    return (
        text.format(
            figure=figure,
            quality=table(tables["quality"], quality),
            differences=table(areas, {"pool": "pool", **pair, **ends, "verdict": "verdict"}),
            claims=table(
                tables["claims"], {"claim": "ordering", **pair, **ends, "result": "result"}
            ),
            online=answers,
        ).rstrip()
        + "\n"
    )


def main() -> None:
    """Write everything."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("work", type=Path)
    results = ROOT / "benchmarks" / "results" / "token_cascades"
    parser.add_argument("--tables", type=Path, default=results)
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "token-cascades.md")
    parser.add_argument(
        "--figure", type=Path, default=ROOT / "docs" / "pictures" / "token-cascades.svg"
    )
    args = parser.parse_args()
    pools = {pool: found for pool in ARMS if (found := measure(args.work, pool))}
    if not pools:
        raise SystemExit(f"{args.work}: no finished student; run run.py first")
    tables: dict[str, list[Row]] = {
        "quality": [row for pool, found in pools.items() for row in quality_rows(pool, found)],
        "contrasts": [
            {"pool": pool, **row}
            for pool, found in pools.items()
            for pair in CONTRASTS
            for name in MEASURES
            if (row := contrast(found, pair, name)) is not None
        ],
        "claims": list(claim_rows(pools.get("text", {}))),
        "online": [row for pool in pools for row in online_rows(args.work, pool)],
    }
    args.tables.mkdir(parents=True, exist_ok=True)
    for name, rows in tables.items():
        write(args.tables / f"{name}.csv", rows)
    draw(pools, args.figure)
    page = args.page.read_text(encoding="utf-8").split("\n## Measured\n")[0].rstrip()
    args.page.write_text(page + "\n\n" + section(tables, args.figure.name), encoding="utf-8")
    seeds = {pool: max(len(one.seeds) for one in found.values()) for pool, found in pools.items()}
    print(f"{args.page}: section Measured, seeds so far {seeds}")


if __name__ == "__main__":
    main()
