"""Reads a working folder: what was planned, what is finished, and what `caskd eval` found of it."""

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
"""Folders of a condition that `caskd eval` wrote, NAME.json beside each: the first that holds an
arm speaks for it."""
REPORT, OBJECTIVES, RULES = REPORTS


@dataclass(frozen=True, eq=False)
class Report:
    """What `caskd eval` wrote over some arms, each with the same seeds."""

    folder: Path
    seeds: Mapping[str, Sequence[int]]
    """Arm -> its seeds, in the order in which they were given."""

    @cached_property
    def summary(self) -> Row:
        """Content of summary.json."""
        return read_json(self.folder / "summary.json")

    @cached_property
    def runs(self) -> dict[str, tuple[str, int]]:
        """Arm and seed of every small model, by its label."""
        return {
            arm if len(seeds) == 1 else f"{arm} seed {place}": (arm, seed)
            for arm, seeds in self.seeds.items()
            for place, seed in enumerate(seeds)
        }

    def table(self, name: str) -> list[Row]:
        """Lines of a CSV file, none if it was not written."""
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
        """What every line of a table begins with."""
        return {"pool": self.pool, "condition": self.condition}

    @property
    def is_text(self) -> bool:
        """Whether next tokens are measured, not answers."""
        return POOLS[self.pool].is_text

    def finished(self, arm: str) -> list[int]:
        """Planned seeds whose student is trained and, where answers are asked for, has answered."""
        proof = "student/config.json" if self.is_text else "test.parquet"
        return [seed for seed in self.planned[arm] if (self.run(arm, seed) / proof).exists()]

    def run(self, arm: str, seed: int) -> Path:
        """Folder of a run."""
        return self.folder / f"{arm}-{seed}"

    def holding(self, *arms: str) -> Report | None:
        """The first report that has all of these arms."""
        found = [one for name in (REPORT, OBJECTIVES) if (one := self.reports.get(name))]
        return next((one for one in found if set(arms) <= set(one.seeds)), None)


@dataclass(frozen=True)
class Work:
    """A working folder."""

    folder: Path
    scale: str
    studies: list[Study]
    setup: Row
    """What was noted of the machine."""

    @cached_property
    def seconds(self) -> dict[str, float]:
        """Seconds that a folder below the working folder took, by its path."""
        path = self.folder / "seconds.jsonl"
        found: dict[str, float] = defaultdict(float)
        for record in read_lines(path) if path.exists() else []:
            for parent in Path(record["job"]).parents:
                found[parent.as_posix()] += record["seconds"]
        return dict(found)


def read_work(folder: Path) -> Work:
    """Open a working folder.

    Raises:
        SystemExit: it is none.
    """
    if not (folder / "plan.json").exists():
        raise SystemExit(f"{folder} has no plan.json: give the folder that reproduce.py worked in")
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
    """Lines of a CSV file, numbers as numbers, empty cells as None."""
    with path.open(encoding="utf-8", newline="") as file:
        return [{name: _cell(cell) for name, cell in line.items()} for line in csv.DictReader(file)]


def write_csv(path: Path, rows: Iterable[Row]) -> None:
    """Write lines with equal keys; no line, no file."""
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
    """Six digits behind the point are more than any seed repeats; no zero has a sign."""
    return round(cell, 6) + 0.0 if isinstance(cell, float) else cell
