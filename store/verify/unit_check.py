"""What is wrong with the files of one commit, and which files belong to none."""

import hashlib
import os
import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import google_crc32c

from caskd.store.commits import (
    DIGEST_LIST,
    STAGING,
    CommitRecord,
    FileRecord,
    check_named_files,
    commit_record,
    unit_files,
)
from caskd.store.errors import StoreError
from caskd.store.format import StoreSpec
from caskd.store.io import files


@dataclass
class UnitCheck:
    """What checking a unit found.

    Attributes:
        names: files of the unit, as its record says (or as it should).
        record_problem: what is wrong with the record; nothing else is checked then.
        bad: what is wrong with each bad file.
        num_files: files read.
        num_bytes: bytes read.
    """

    names: set[str]
    record_problem: str | None = None
    bad: dict[str, str] = field(default_factory=dict)
    num_files: int = 0
    num_bytes: int = 0

    @property
    def problems(self) -> list[str]:
        """One line for each."""
        return [*([self.record_problem] if self.record_problem else []), *self.bad.values()]


def check_unit(root: Path, spec: StoreSpec | None, unit: str, *, full: bool) -> UnitCheck:
    """Compare the files of a unit with its record: size and checksums, with `full` sha256 too.

    Without a `spec`, whatever files the record names are taken for those of the unit.
    """
    try:
        record = named_record(root, spec, unit)
    except StoreError as error:
        return UnitCheck({*unit_files(spec, unit)} if spec else set(), str(error))
    found = UnitCheck({item.name for item in record.file_records})
    for item in record.file_records:
        problem = _file_problem(root, unit, item, full, found)
        if problem:
            found.bad[item.name] = problem
    return found


def named_record(root: Path, spec: StoreSpec | None, unit: str) -> CommitRecord:
    """The record of `unit`, which names just the files that the unit has.

    Raises:
        CorruptError: it is missing, damaged, or names others.
    """
    record = commit_record.read_record(root, unit)
    if spec is not None:
        check_named_files(record, spec)
    return record


def _file_problem(
    root: Path, unit: str, item: FileRecord, full: bool, found: UnitCheck
) -> str | None:
    """Read a file; count it in `found`; say what is wrong with it."""
    crc32 = crc32c = 0
    digest = hashlib.sha256()
    try:
        commit_record.check_size(root, unit, item)
        with files.open_inside(root, item.name) as handle:
            for block in files.blocks(handle):
                crc32, crc32c = zlib.crc32(block, crc32), google_crc32c.extend(crc32c, block)
                if full:
                    digest.update(block)
    except StoreError as error:
        return str(error)
    found.num_files += 1
    found.num_bytes += item.size
    if (f"{crc32:08x}", f"{crc32c:08x}") != (item.crc32, item.crc32c):
        return f"{item.name}: its checksums differ from commit {unit}."
    if full and digest.hexdigest() != item.sha256:
        return f"{item.name}: its sha256 differs from commit {unit}."
    return None


def strays(root: Path, units: Collection[str], named: Collection[str]) -> Iterator[str]:
    """Files and links in data.zarr and commits that belong to nothing, and leftover staging."""
    for folder, folders, names in os.walk(root / "data.zarr"):
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        for name in sorted([*names, *links]):
            relative = Path(folder, name).relative_to(root).as_posix()
            if relative not in named:
                yield relative
    expected = {DIGEST_LIST, *map(commit_record.record_name, units)}
    if (root / "commits").is_dir():
        for entry in sorted(os.listdir(root / "commits")):
            if f"commits/{entry}" not in expected:
                yield f"commits/{entry}"
    if os.path.lexists(root / "seal.json") and os.path.lexists(root / STAGING):
        yield STAGING
