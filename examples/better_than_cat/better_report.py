"""Write the results of the comparison: CSV tables, a picture and a page, from a working folder.

    python better_report.py WORK

Every run generates all of them anew from what is finished, and the page says what is not. The
picture and the page read the tables only.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import reproduction  # noqa: F401
from arms import control_of
from better_contrasts import contrast_rows
from better_page import page
from better_picture import picture
from better_plan import (
    AUDC,
    CAT,
    CONDITIONS,
    GAIN,
    PRETRAINED_POOL,
    SCREENED_POOLS,
    Run,
    confirmed_arms,
    mean_difference,
    screened_arms,
)
from better_runs import CONFIRMATION, SCREENING, STAGES, run_rows, runs_of
from report_read import Row, read_csv, read_json, write_csv

ROOT = Path(__file__).resolve().parents[2]
TABLES = ("progress", "runs", "screening", "contrasts")


def tables(work: Path) -> dict[str, list[Row]]:
    """Lines of each table by its name."""
    runs = run_rows(work)
    chosen = _note(work / "chosen.json", "candidates") or {}
    return {
        "progress": list(progress_rows(runs, chosen, _note(work / "winner.json", "winner"))),
        "runs": runs,
        "screening": list(screening_rows(runs_of(runs, SCREENING), chosen)),
        "contrasts": contrast_rows(work),
    }


def progress_rows(
    runs: Sequence[Row], chosen: Mapping[str, Sequence[str]], best: str | None
) -> Iterator[Row]:
    """Every planned arm with its number of finished seeds; later stages once they are chosen."""
    for stage in STAGES:
        for pool in stage.pools:
            if stage.name == SCREENING:
                controls = [name for arm in screened_arms(pool) if (name := control_of(arm))]
                arms: Sequence[str] = (*screened_arms(pool), *controls)
            elif stage.name == CONFIRMATION:
                arms = confirmed_arms(chosen[pool]) if chosen.get(pool) else ()
            else:
                arms = confirmed_arms([best] if best else []) if pool == PRETRAINED_POOL else ()
            for condition in stage.conditions:
                for arm in arms:
                    place = {"stage": stage.name, "pool": pool, "condition": condition, "arm": arm}
                    done = sum(place.items() <= run.items() for run in runs)
                    yield {**place, "planned_seeds": len(stage.seeds), "finished_seeds": done}


def _note(path: Path, name: str) -> Any:
    """A value of a JSON file that run_better.py wrote; None if the file does not exist yet."""
    return read_json(path)[name] if path.exists() else None


def screening_rows(runs: Sequence[Run], chosen: Mapping[str, Sequence[str]]) -> Iterator[Row]:
    """What plan.md's choice reads of every arm: A, G and C, and A by condition; and the choice."""
    for pool in SCREENED_POOLS:
        candidates = list(chosen.get(pool, ()))
        for arm in screened_arms(pool):
            own = [run for run in runs if (run.pool, run.arm) == (pool, arm)]
            if not own:
                continue
            control = control_of(arm)
            by_condition = {
                f"audc_gain_{condition}": mean_difference(
                    [run for run in runs if run.condition == condition], pool, arm, CAT, AUDC
                )
                for condition in CONDITIONS
            }
            yield {
                "pool": pool, "arm": arm, "num_runs": len(own),
                "audc_gain": mean_difference(runs, pool, arm, CAT, AUDC), **by_condition,
                "over_random_gain": mean_difference(runs, pool, arm, CAT, GAIN),
                "gain_over_control": control
                and mean_difference(runs, pool, arm, control, AUDC),
                "candidate": _place(candidates, arm) if chosen else None,
            }  # fmt: skip


def _place(candidates: Sequence[str], arm: str) -> int:
    """1 for the first candidate, 2 for the second, 0 for other arms."""
    return candidates.index(arm) + 1 if arm in candidates else 0


def main() -> None:
    """Read the command line, write the tables, then the page from the tables alone."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("work", type=Path, help="folder that run_better.py worked in")
    parser.add_argument("--results", type=Path, help="folder for the tables",
                        default=ROOT / "benchmarks" / "results" / "better_than_cat")  # fmt: skip
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="folder for the page")
    args = parser.parse_args()
    args.results.mkdir(parents=True, exist_ok=True)
    for name, rows in tables(args.work).items():
        write_csv(args.results / f"{name}.csv", rows)
    write_page(args.results, args.docs)


def write_page(results: Path, docs: Path) -> None:
    """Draw the picture and write the page from the tables."""
    paths = {name: results / f"{name}.csv" for name in TABLES}
    found = {name: read_csv(path) if path.exists() else [] for name, path in paths.items()}
    if not found["screening"]:
        raise SystemExit("no arm is finished; run run_better.py first")
    (docs / "better-than-cat.svg").write_bytes(picture(found["runs"]))
    (docs / "better-than-cat.md").write_text(page(found), encoding="utf-8")
    done = sum(row["finished_seeds"] for row in found["progress"])
    print(f"{docs / 'better-than-cat.md'}: {done} runs")


if __name__ == "__main__":
    main()
