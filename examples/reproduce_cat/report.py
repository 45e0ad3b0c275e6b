"""Write the results of the reproduction: CSV tables, figures and a page, from a working folder.

    python report.py WORK

Every run regenerates all tables, figures and the page from the working folder alone, and lists what
of the plan is not finished. The figures and the page read the tables only.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from pools import POOLS
from report_claims import claim_rows
from report_contrasts import a1_a2_rows, contrast_rows, power_rows, rule_rows
from report_figures import figures
from report_page import page
from report_read import Row, Work, read_csv, read_work, write_csv
from report_runs import (
    curve_rows,
    keep_rows,
    pool_rows,
    progress_rows,
    run_rows,
    setup_rows,
)

from caskd.eval.report import png_bytes

ROOT = Path(__file__).resolve().parents[2]
TABLES = ("progress", "runs", "contrasts", "pools", "keep_fraction", "curves", "rules", "a1_a2",
          "power", "next_token", "setup", "claims")  # fmt: skip


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("work", type=Path, help="folder that reproduce.py worked in")
    parser.add_argument("--results", type=Path, help="folder for the tables",
                        default=ROOT / "benchmarks" / "results" / "reproduction")  # fmt: skip
    parser.add_argument("--docs", type=Path, default=ROOT / "docs",
                        help="folder for reproduction.md and its figures")  # fmt: skip
    args = parser.parse_args()
    work = read_work(args.work)
    write_tables(work, args.results)
    write_page(args.results, args.docs)


def write_tables(work: Work, results: Path) -> None:
    """Write every CSV file; remove a file that would have no lines."""
    results.mkdir(parents=True, exist_ok=True)
    for name, rows in tables(work).items():
        write_csv(results / f"{name}.csv", rows)
        print(f"{results / name}.csv: {len(rows):,} lines")


def tables(work: Work) -> dict[str, list[Row]]:
    """Lines of each table by its name."""
    runs = list(run_rows(work))
    found = {
        "progress": list(progress_rows(work)),
        "runs": runs,
        "contrasts": list(contrast_rows(work)),
        "pools": list(pool_rows(work, runs)),
        "keep_fraction": list(keep_rows(work)),
        "curves": list(curve_rows(work)),
        "rules": list(rule_rows(work)),
        "a1_a2": list(a1_a2_rows(work)),
        "power": list(power_rows(work, runs)),
        "next_token": [run for run in runs if POOLS[run["pool"]].is_text],
        "setup": list(setup_rows(work)),
    }
    planned: dict[str, set[str]] = {}
    for study in work.studies:
        planned.setdefault(study.pool, set()).add(study.condition)
    return {**found, "claims": list(claim_rows(found, planned))}


def write_page(results: Path, docs: Path) -> None:
    """Draw the figures and write the page from the tables alone."""
    found = read_tables(results)
    folder = docs / "reproduction"
    folder.mkdir(parents=True, exist_ok=True)
    pools = list(dict.fromkeys(row["pool"] for row in found["progress"]))
    pictures: list[tuple[str, str, str]] = []
    for pool in pools:
        for name, alt, figure in figures(found, pool):
            path = folder / f"{name}.png"
            path.write_bytes(png_bytes(figure))
            pictures.append((pool, path.relative_to(docs).as_posix(), alt))
    _remove_others(folder, [docs / picture for _, picture, _ in pictures])
    text = page(found, pictures, Path(os.path.relpath(results, docs)).as_posix())
    (docs / "reproduction.md").write_text(text, encoding="utf-8")
    print(f"{docs / 'reproduction.md'}: {len(pictures)} figures")


def read_tables(results: Path) -> dict[str, list[Row]]:
    """Lines of every table; an empty list for a table without a file."""
    paths = {name: results / f"{name}.csv" for name in TABLES}
    return {name: read_csv(path) if path.exists() else [] for name, path in paths.items()}


def _remove_others(folder: Path, kept: Sequence[Path]) -> None:
    """Remove figures of an earlier report that this one does not have."""
    for path in set(folder.glob("*.png")) - set(kept):
        path.unlink()


if __name__ == "__main__":
    main()
