"""Checks of the files of one commit, and the search for files that belong to no commit."""

import hashlib
import os
import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import google_crc32c

from caskd.store.commits import (
    CommitRecord,
    FileRecord,
    check_named_files,
    commit_record,
    unit_files,
)
from caskd.store.errors import StoreError
from caskd.store.format import COMMITS, DATA, DIGEST_LIST, SEAL, STAGING, StoreSpec
from caskd.store.io import files


@dataclass
class UnitCheck:
    """The result of checking a unit.

    Attributes:
        names: files of the unit, as its record names them (or, if it is damaged, as it should).
        record_problem: what is wrong with the record; its files are not checked then.
        bad: what is wrong with each damaged file, by name.
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
        """One line per problem."""
        return [*([self.record_problem] if self.record_problem else []), *self.bad.values()]


def check_unit(root: Path, spec: StoreSpec | None, unit: str, *, full: bool) -> UnitCheck:
    """Compare the files of a unit with its record: sizes and checksums, and sha256 if `full`.

    Without a `spec`, the record may name any files.
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
    """Read the record of `unit` and check that it names exactly the files of the unit.

    Raises:
        CorruptError: it is missing or damaged, or names the wrong files.
    """
    record = commit_record.read_record(root, unit)
    if spec is not None:
        check_named_files(record, spec)
    return record


def _file_problem(
    root: Path, unit: str, item: FileRecord, full: bool, found: UnitCheck
) -> str | None:
    """Read a file, count it in `found`, and return what is wrong with it."""
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
    """Files and links of data.zarr and commits that no record names; staging of a sealed store."""
    for folder, folders, names in os.walk(root / DATA):
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        for name in sorted([*names, *links]):
            relative = Path(folder, name).relative_to(root).as_posix()
            if relative not in named:
                yield relative
    expected = {DIGEST_LIST, *map(commit_record.record_name, units)}
    if (root / COMMITS).is_dir():
        for entry in sorted(os.listdir(root / COMMITS)):
            if f"{COMMITS}/{entry}" not in expected:
                yield f"{COMMITS}/{entry}"
    if os.path.lexists(root / SEAL) and os.path.lexists(root / STAGING):
        yield STAGING
