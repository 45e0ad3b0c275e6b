"""Verify a store: compare every file with its records and, if `full`, check every row."""

import math
import random
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from caskd.store.commits import all_units, commit_record, seal_content
from caskd.store.errors import (
    CorruptError,
    IncompleteError,
    StoreError,
    UnreadableError,
    UnsafeError,
    UsageError,
)
from caskd.store.format import DIGEST_LIST, SEAL, canonical_json
from caskd.store.io import files, progress
from caskd.store.read import StoreArrays, TeacherStore
from caskd.store.verify.rows import row_problems
from caskd.store.verify.unit_check import check_unit, named_record, strays
from caskd.store.write import read_spec


@dataclass
class VerifyReport:
    """Counts of what was checked, and what was found (one line each).

    Attributes:
        num_files: files read.
        num_bytes: bytes read.
        num_rows: rows whose values were checked.
        problems: everything that is wrong, unreadable files included.
        unreadable: those of the problems that are no damage: a file could not be read.
    """

    num_files: int = 0
    num_bytes: int = 0
    num_rows: int = 0
    problems: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether the store is complete and has no problem."""
        return not self.problems

    def add(self, error: StoreError) -> None:
        """Add the problem that an error describes."""
        self.problems.append(str(error))
        if isinstance(error, UnreadableError):
            self.unreadable.append(str(error))


def verify_store(
    url: str | Path,
    *,
    full: bool = False,
    sample: float | None = None,
    seed: int = 0,
    quiet: bool = True,
) -> VerifyReport:
    """Re-read a store and compare it with its commit records and its seal.

    Args:
        url: the store.
        full: also compare sha256, and check the meaning of every row.
        sample: check the plan, the pilot and this fraction of the shards, chosen at random.
        seed: of the random choice.
        quiet: show no progress.

    Returns:
        A report. `report.ok` is also false for an unsealed store, since rows may be missing, and
        where a file could not be read.

    Raises:
        StoreNotFoundError: `url` holds no store.
        UnreadableError: store.json or the folder of the records cannot be read.
        UnsafeError: store.json is invalid.
        UsageError: `sample` is not a fraction.
    """
    report = VerifyReport()
    store = _open(url, report)
    units, committed = all_units(store.spec), commit_record.committed_units(store.root)
    present = [unit for unit in units if unit in committed]
    if len(present) < len(units):
        report.problems.append(
            f"not sealed: {len(units) - len(present)} of {len(units)} commits are missing. "
            "Run caskd precompute again to finish it."
        )
    chosen = sampled_units(present, sample, seed)
    with progress("verify", len(chosen), "commits", quiet=quiet) as bar:
        named = _check_units(store, chosen, full, report, bar.advance)
    named |= _named(store, {*present} - {*chosen}, report)
    if not report.unreadable:  # a record that was not read names files too
        _check_strays(store.root, {*units}, named, report)
    if len(present) == len(units):
        _check_seal(store, report)
    if full and report.ok:
        _check_rows(store, {*chosen}, report)
    return report


def _open(url: str | Path, report: VerifyReport) -> TeacherStore:
    """Open the store; damage that opening finds goes into the report."""
    try:
        return TeacherStore.open(url, allow_unsealed=True)
    except (CorruptError, IncompleteError, UnreadableError, UnsafeError) as error:
        report.add(error)
        return TeacherStore(StoreArrays(Path(url), read_spec(Path(url), str(url))))


def sampled_units(units: Sequence[str], sample: float | None, seed: int) -> list[str]:
    """The plan, the pilot, and a random fraction of the shards, in their original sequence.

    Raises:
        UsageError: `sample` is not in (0, 1].
    """
    if sample is None:
        return [*units]
    if not 0 < sample <= 1:
        raise UsageError(
            f"--sample {sample:.4%}: expected more than 0 % and at most 100 %; pass 5%, say"
        )
    shards = [unit for unit in units if unit.isdigit()]
    chosen = {*random.Random(seed).sample(shards, math.ceil(sample * len(shards)))}
    return [unit for unit in units if unit in chosen or not unit.isdigit()]


def _check_units(
    store: TeacherStore,
    units: Iterable[str],
    full: bool,
    report: VerifyReport,
    advance: Callable[[], None],
) -> set[str]:
    """Check the files of some units; returns the names of the files."""
    named: set[str] = set()
    for unit in units:
        found = check_unit(store.root, store.spec, unit, full=full)
        report.num_files += found.num_files
        report.num_bytes += found.num_bytes
        report.problems += [*found.problems, *found.unreadable.values()]
        report.unreadable += found.unreadable.values()
        named |= found.names
        advance()
    return named


def _named(store: TeacherStore, units: Iterable[str], report: VerifyReport) -> set[str]:
    """Names of the files of units that are not checked."""
    named: set[str] = set()
    for unit in units:
        try:
            listed = named_record(store.root, store.spec, unit).file_records
        except StoreError as error:
            report.add(error)
            continue
        named |= {item.name for item in listed}
    return named


def _check_strays(
    root: Path, units: Collection[str], named: Collection[str], report: VerifyReport
) -> None:
    try:
        for name in strays(root, units, named):
            report.problems.append(f"{name}: no commit record names it.")
    except UnreadableError as error:
        report.add(error)


def _check_seal(store: TeacherStore, report: VerifyReport) -> None:
    try:
        if not store.sealed:
            report.problems.append("not sealed: every shard is committed. Run caskd store seal.")
            return
        totals, digests = seal_content(store.root, store.spec)
        if files.read_small(store.root, DIGEST_LIST, len(digests)) != digests:
            report.problems.append(f"{DIGEST_LIST}: differs from the commit records")
        if files.read_small(store.root, SEAL) != canonical_json(totals):
            report.problems.append(f"{SEAL}: differs from the totals of the commit records")
    except StoreError as error:
        if str(error) not in report.problems:
            report.add(error)


def _check_rows(store: TeacherStore, units: Collection[str], report: VerifyReport) -> None:
    """Check the rows of the shards in `units`."""
    shards = store.index.row_start // store.spec.shard_rows
    wanted = np.isin(shards, [int(unit) for unit in units if unit.isdigit()])
    chosen = np.flatnonzero(wanted & (store.row_counts() > 0))
    for start in range(0, len(chosen), 256):
        examples = chosen[start : start + 256]
        try:
            batch = store.read(examples)
        except StoreError as error:
            report.add(error)
            continue
        report.num_rows += batch.num_rows
        problems = row_problems(batch, store.spec)
        if problems:
            report.problems.append(f"examples {examples[0]} to {examples[-1]}: {problems[0]}")
