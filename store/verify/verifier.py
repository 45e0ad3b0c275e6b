"""Checking a store against its own records: every byte, and with `full` every row.

Legend: N rows of a shard, k cells per row.
"""

import math
import random
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from caskd.store.commits import DIGEST_LIST, all_units, commit_record, seal_content
from caskd.store.errors import CorruptError, IncompleteError, StoreError, UnsafeError, UsageError
from caskd.store.format import canonical_json
from caskd.store.io import files, progress
from caskd.store.read import StoreArrays, TeacherStore
from caskd.store.verify.rows import draw_problems, row_problems
from caskd.store.verify.unit_check import check_unit, named_record, strays
from caskd.store.write import read_spec


@dataclass
class VerifyReport:
    """What was checked, and what was found wrong (one line each)."""

    num_files: int = 0
    num_bytes: int = 0
    num_rows: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong and the store is complete."""
        return not self.problems


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
        sample: read plan and pilot, and this part of the shards, chosen at random.
        seed: which part that is.
        quiet: show no progress.

    Returns:
        A report; `report.ok` is false for an unsealed store too, since rows are missing.

    Raises:
        StoreNotFoundError: there is no store.
        UnsafeError: store.json is not one that can be read.
        UsageError: `sample` is not a part.
    """
    report = VerifyReport()
    store = _open(url, report)
    units, there = all_units(store.spec), commit_record.committed_units(store.root)
    present = [unit for unit in units if unit in there]
    if len(present) < len(units):
        report.problems.append(
            f"not sealed: {len(units) - len(present)} of {len(units)} commits are missing. "
            "Run caskd precompute again to finish it."
        )
    chosen = sampled_units(present, sample, seed)
    with progress("verify", len(chosen), "commits", quiet=quiet) as bar:
        named = _check_units(store, chosen, full, report, bar.advance)
    named |= _named(store, {*present} - {*chosen}, report)
    report.problems += [
        f"{name}: no commit names it." for name in strays(store.root, {*units}, named)
    ]
    if len(present) == len(units):
        _check_seal(store, report)
    if full and report.ok:
        _check_rows(store, {*chosen}, report)
    return report


def _open(url: str | Path, report: VerifyReport) -> TeacherStore:
    """The store, also where opening it finds damage; that goes into the report."""
    try:
        return TeacherStore.open(url, allow_unsealed=True)
    except (CorruptError, IncompleteError, UnsafeError) as error:
        report.problems.append(str(error))
        return TeacherStore(StoreArrays(Path(url), read_spec(Path(url), str(url))))


def sampled_units(units: Sequence[str], sample: float | None, seed: int) -> list[str]:
    """The plan, the pilot, and a random part of the shards, in order.

    Raises:
        UsageError: `sample` is not above 0 and at most 1.
    """
    if sample is None:
        return [*units]
    if not 0 < sample <= 1:
        raise UsageError(f"--sample is {sample:.4%}; expected above 0 % and at most 100 %.")
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
    """Read the files of some units; returns their names."""
    named: set[str] = set()
    for unit in units:
        found = check_unit(store.root, store.spec, unit, full=full)
        report.num_files += found.num_files
        report.num_bytes += found.num_bytes
        report.problems += found.problems
        named |= found.names
        advance()
    return named


def _named(store: TeacherStore, units: Iterable[str], report: VerifyReport) -> set[str]:
    """Names of the files of units that are not read."""
    named: set[str] = set()
    for unit in units:
        try:
            listed = named_record(store.root, store.spec, unit).file_records
        except StoreError as error:
            report.problems.append(str(error))
            continue
        named |= {item.name for item in listed}
    return named


def _check_seal(store: TeacherStore, report: VerifyReport) -> None:
    if not store.sealed:
        report.problems.append("not sealed: every shard is there. Run caskd store seal.")
        return
    try:
        totals, digests = seal_content(store.root, store.spec)
        if files.read_small(store.root, DIGEST_LIST, len(digests)) != digests:
            report.problems.append(f"{DIGEST_LIST}: differs from the commit records.")
        if files.read_small(store.root, "seal.json") != canonical_json(totals):
            report.problems.append("seal.json: differs from what the commits add up to.")
    except StoreError as error:
        report.problems.append(str(error))


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
            report.problems.append(str(error))
            continue
        report.num_rows += batch.num_rows
        if store.spec.kind == "sampled":
            wrong = draw_problems(batch, store.spec.num_samples)
        else:
            wrong = row_problems(batch, exact=store.spec.encoding == "exact")
        if wrong:
            report.problems.append(f"examples {examples[0]} to {examples[-1]}: {wrong[0]}")
