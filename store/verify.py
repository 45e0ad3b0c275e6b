"""Checking a store against its own records: every byte, and with `full` every row.

Legend: N rows of a shard, k cells per row.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from caskd.store import commits, files
from caskd.store.batch import StoreBatch
from caskd.store.errors import StoreError
from caskd.store.progress import progress
from caskd.store.reader import TeacherStore
from caskd.store.seal import all_units, seal_content
from caskd.store.spec import canonical_json


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


def verify_store(url: str | Path, *, full: bool = False, quiet: bool = True) -> VerifyReport:
    """Re-read a store and compare it with its commit records and its seal.

    Args:
        url: the store.
        full: also compare sha256, and check the meaning of every row: order, ties, ranks, mass.
        quiet: show no progress.

    Returns:
        A report; `report.ok` is false for an unsealed store too, since rows are missing.

    Raises:
        StoreNotFoundError: there is no store.
    """
    store = TeacherStore.open(url, allow_unsealed=True)
    report = VerifyReport()
    units = all_units(store.spec)
    present = [unit for unit in units if _exists(store.root, unit, report)]
    if len(present) < len(units):
        report.problems.append(
            f"not sealed: {len(units) - len(present)} of {len(units) - 1} shards are missing. "
            "Run caskd precompute again to finish it."
        )
    named: set[str] = set()
    with progress("verify", len(present), "commits", quiet=quiet) as bar:
        for unit in present:
            named |= _check_unit(store.root, unit, full, report)
            bar.advance()
    report.problems += [f"{name}: no commit names it." for name in _foreign(store.root, named)]
    if len(present) == len(units):
        _check_seal(store, report)
    if full and report.ok:
        _check_rows(store, report)
    return report


def _exists(root: Path, unit: str, report: VerifyReport) -> bool:
    try:
        return commits.is_committed(root, unit)
    except StoreError as error:
        report.problems.append(str(error))
        return False


def _check_unit(root: Path, unit: str, full: bool, report: VerifyReport) -> set[str]:
    """Compare the files of one commit; returns their names."""
    try:
        record = commits.read_record(root, unit)
    except StoreError as error:
        report.problems.append(str(error))
        return set()
    for item in record.file_records:
        try:
            commits.check_size(root, unit, item)
        except StoreError as error:
            report.problems.append(str(error))
            continue
        data = (root / item.name).read_bytes()
        report.num_files += 1
        report.num_bytes += len(data)
        if commits.crc32c_hex(data) != item.crc32c:
            report.problems.append(f"{item.name}: its crc32c differs from commit {unit}.")
        elif full and hashlib.sha256(data).hexdigest() != item.sha256:
            report.problems.append(f"{item.name}: its sha256 differs from commit {unit}.")
    return {item.name for item in record.file_records}


def _foreign(root: Path, named: set[str]) -> Iterator[str]:
    """Files inside data.zarr that no commit names."""
    for path in sorted((root / "data.zarr").rglob("*")):
        name = path.relative_to(root).as_posix()
        if (path.is_symlink() or not path.is_dir()) and name not in named:
            yield name


def _check_seal(store: TeacherStore, report: VerifyReport) -> None:
    if not store.sealed:
        report.problems.append("not sealed: every shard is there. Run caskd store seal.")
        return
    try:
        totals, digests = seal_content(store.root, store.spec)
        if files.read_small(store.root / "commits" / "commits.sha256") != digests:
            report.problems.append("commits/commits.sha256: differs from the commit records.")
        if files.read_small(store.root / "seal.json") != canonical_json(totals):
            report.problems.append("seal.json: differs from what the commits add up to.")
    except StoreError as error:
        report.problems.append(str(error))


def _check_rows(store: TeacherStore, report: VerifyReport) -> None:
    for start in range(0, len(store), 256):
        examples = range(start, min(start + 256, len(store)))
        try:
            batch = store.read(examples)
        except StoreError as error:
            report.problems.append(str(error))
            continue
        report.num_rows += batch.num_rows
        wrong = row_problems(batch, exact=store.spec.encoding == "exact")
        if wrong:
            report.problems.append(f"examples {start} to {examples[-1]}: {wrong[0]}")


def row_problems(batch: StoreBatch, *, exact: bool) -> list[str]:
    """What contradicts the meaning of the fields, in words; empty when all is well.

    Args:
        batch: rows with every field.
        exact: logits are the teacher's own. Rounded ones may tie where those did not, which leaves
            the order of ids inside a tie open, and kept probabilities add up only roughly.
    """
    ids, logits, kept, tail, logsumexp, argmax, rank = map(
        batch.column,
        ("topk_ids", "topk_logits", "num_kept", "tail_mass", "logsumexp", "argmax", "label_rank"),
    )
    known = kept > 0
    cells = np.arange(ids.shape[1]) < kept[:, None]
    pairs = cells[:, 1:]
    with np.errstate(invalid="ignore"):  # padding cells are -inf
        falling = logits[:, :-1] > logits[:, 1:]
        tied = logits[:, :-1] == logits[:, 1:]
        if exact:
            tied &= ids[:, :-1] < ids[:, 1:]
        mass = np.where(cells, np.exp(logits.astype(np.float64) - logsumexp[:, None]), 0.0)
    total = mass.sum(axis=1) + tail
    checks = {
        "topk_ids are not in rank order": (pairs & ~(falling | tied)).any(axis=1),
        "argmax is not topk_ids[0]": argmax != ids[:, 0],
        "label_rank 0 does not mean that the label is the argmax": (rank == 0)
        != (argmax == batch.labels),
        "the kept mass and tail_mass do not add up to 1": np.abs(total - 1)
        > (1e-3 if exact else 0.05),
    }
    return [text for text, bad in checks.items() if (bad & known).any()]
