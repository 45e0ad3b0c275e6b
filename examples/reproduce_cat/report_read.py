"""Reads a working folder: the plan, the finished runs, and the reports of `caskd eval`."""

import csv
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pools import POOLS

Row = dict[str, Any]
REPORTS = ("report", "report-objectives", "report-rules")
"""Report folders of a condition, with NAME.json beside each. An arm's figures come from the first
report that holds it."""
REPORT, OBJECTIVES, RULES = REPORTS


@dataclass(frozen=True, eq=False)
class Report:
    """A report of `caskd eval` over some arms with equal seeds."""

    folder: Path
    seeds: Mapping[str, Sequence[int]]
    """Arm -> its seeds, in the order of the command line."""

    @cached_property
    def summary(self) -> Row:
        """Content of summary.json."""
        return read_json(self.folder / "summary.json")

    @cached_property
    def runs(self) -> dict[str, tuple[str, int]]:
        """Label of a small model -> its arm and seed."""
        return {
            arm if len(seeds) == 1 else f"{arm} seed {index}": (arm, seed)
            for arm, seeds in self.seeds.items()
            for index, seed in enumerate(seeds)
        }

    def table(self, name: str) -> list[Row]:
        """Lines of a CSV file; an empty list if the file does not exist."""
        path = self.folder / f"{name}.csv"
        return read_csv(path) if path.exists() else []


@dataclass(frozen=True)
class Study:
    """One pool under one condition."""

    pool: str
    condition: str
    folder: Path
    planned: Mapping[str, Sequence[int]]
    """Arm -> its seeds."""
    reports: Mapping[str, Report]

    @property
    def keys(self) -> Row:
        """The first columns of every table."""
        return {"pool": self.pool, "condition": self.condition}

    @property
    def is_text(self) -> bool:
        """Whether the study measures next tokens, not answers."""
        return POOLS[self.pool].is_text

    def finished(self, arm: str) -> list[int]:
        """Planned seeds with a trained student and, except for text, its predictions."""
        proof = "student/config.json" if self.is_text else "test.parquet"
        return [seed for seed in self.planned[arm] if (self.run(arm, seed) / proof).exists()]

    def run(self, arm: str, seed: int) -> Path:
        """Folder of a run."""
        return self.folder / f"{arm}-{seed}"

    def holding(self, *arms: str) -> Report | None:
        """The first report that has all of these arms."""
        found = [self.reports[name] for name in (REPORT, OBJECTIVES) if name in self.reports]
        return next((report for report in found if set(arms) <= set(report.seeds)), None)


@dataclass(frozen=True)
class Work:
    """A working folder."""

    folder: Path
    scale: str
    studies: list[Study]
    setup: Row
    """Facts about the machine."""

    @cached_property
    def seconds(self) -> dict[str, float]:
        """Path of a folder below the working folder -> seconds of its commands."""
        path = self.folder / "seconds.jsonl"
        found: dict[str, float] = defaultdict(float)
        for record in read_lines(path) if path.exists() else []:
            for parent in Path(record["job"]).parents:
                found[parent.as_posix()] += record["seconds"]
        return dict(found)


def read_work(folder: Path) -> Work:
    """Open a working folder.

    Raises:
        SystemExit: the folder has no plan.
    """
    if not (folder / "plan.json").exists():
        raise SystemExit(f"{folder} has no plan.json; pass the working folder of reproduce.py")
    plan = read_json(folder / "plan.json")
    studies = [
        _study(folder, pool, condition, arms)
        for pool, about in plan["pools"].items()
        for condition, arms in about["conditions"].items()
    ]
    run = folder / "run.json"
    return Work(folder, plan["scale"], studies, read_json(run) if run.exists() else {})


def _study(work: Path, pool: str, condition: str, arms: Mapping[str, Sequence[int]]) -> Study:
    folder = work / pool / condition
    reports = {
        name: Report(folder / name, read_json(folder / f"{name}.json")["arms"])
        for name in REPORTS
        if (folder / name / "summary.json").exists()
    }
    return Study(pool, condition, folder, arms, reports)


def read_json(path: Path) -> Row:
    """Content of a JSON file."""
    content: Row = json.loads(path.read_text(encoding="utf-8"))
    return content


def read_lines(path: Path) -> list[Row]:
    """Content of a JSON lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def read_csv(path: Path) -> list[Row]:
    """Lines of a CSV file, with numbers converted and empty cells as None."""
    with path.open(encoding="utf-8", newline="") as file:
        return [{name: _cell(cell) for name, cell in line.items()} for line in csv.DictReader(file)]


def write_csv(path: Path, rows: Iterable[Row]) -> None:
    """Write lines with equal keys; without lines, remove the file."""
    rows = list(rows)
    if not rows:
        path.unlink(missing_ok=True)
        return
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: _short(cell) for name, cell in row.items()} for row in rows)


def _cell(text: str) -> Any:
    if not text:
        return None
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        return text


def _short(cell: Any) -> Any:
    """Round to six decimals, more than any seed reproduces; a zero stays positive."""
    return round(cell, 6) + 0.0 if isinstance(cell, float) else cell
