"""Checks of the files of one commit, and the search for files that belong to no commit."""

import hashlib
import zlib
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import google_crc32c

from caskd.store.commits import (
    CommitRecord,
    FileRecord,
    check_named_files,
    commit_record,
    publish,
    unit_files,
)
from caskd.store.errors import StoreError, UnreadableError, UnsafeError
from caskd.store.format import COMMITS, DATA, DIGEST_LIST, SEAL, STAGING, StoreSpec
from caskd.store.io import files


@dataclass
class UnitCheck:
    """The result of checking a unit.

    Attributes:
        names: files of the unit, as its record names them (or, if it is damaged, as it should).
        record_problem: what is wrong with the record; its files are not checked then.
        bad: what is wrong with each damaged file, by name.
        staged: files that are intact, but still in staging: the commit of an unsealed store whose
            writer died. Any capture moves them.
        unreadable: why a file, or the record, could not be read, by name; nothing is known of it.
        num_files: files read.
        num_bytes: bytes read.
    """

    names: set[str]
    record_problem: str | None = None
    bad: dict[str, str] = field(default_factory=dict)
    staged: set[str] = field(default_factory=set)
    unreadable: dict[str, str] = field(default_factory=dict)
    num_files: int = 0
    num_bytes: int = 0

    @property
    def problems(self) -> list[str]:
        """One line per problem, without those of unreadable files."""
        waiting = f"not sealed: {len(self.staged)} committed files, the first {{}}, are still in "
        waiting += "staging. Run caskd precompute again to finish."
        return [
            *([self.record_problem] if self.record_problem else []),
            *([waiting.format(min(self.staged))] if self.staged else []),
            *self.bad.values(),
        ]


def check_unit(root: Path, spec: StoreSpec | None, unit: str, *, full: bool) -> UnitCheck:
    """Compare the files of a unit with its record: sizes and checksums, and sha256 if `full`.

    Without a `spec`, the record may name any files.
    """
    try:
        record = named_record(root, spec, unit)
    except UnreadableError as error:
        names = {*unit_files(spec, unit)} if spec else set()
        return UnitCheck(names, unreadable={commit_record.record_name(unit): str(error)})
    except StoreError as error:
        return UnitCheck({*unit_files(spec, unit)} if spec else set(), str(error))
    found = UnitCheck({item.name for item in record.file_records})
    for item in record.file_records:
        try:
            name = _where(root, record, item)
            problem = _file_problem(root, unit, item, name, full, found)
        except UnreadableError as error:
            found.unreadable[item.name] = str(error)
            continue
        if problem:
            found.bad[item.name] = problem
        elif name != item.name:
            found.staged.add(item.name)
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


def _where(root: Path, record: CommitRecord, item: FileRecord) -> str:
    """Where a committed file is: under its own name, or still in the staging of an open store."""
    with suppress(UnsafeError):
        if files.size_inside(root, item.name) is None and not files.exists(root / SEAL):
            staged = f"{STAGING}/{record.digest}/{publish.staged_name(item.name)}"
            if files.size_inside(root, staged) == item.size:
                return staged
    return item.name


def _file_problem(
    root: Path, unit: str, item: FileRecord, name: str, full: bool, found: UnitCheck
) -> str | None:
    """Read a file at `name`, count it in `found`, and return what is wrong with it."""
    crc32 = crc32c = 0
    digest = hashlib.sha256()
    try:
        if name == item.name:
            commit_record.check_size(root, unit, item)
        with files.open_inside(root, name) as handle:
            for block in files.blocks(handle):
                crc32, crc32c = zlib.crc32(block, crc32), google_crc32c.extend(crc32c, block)
                if full:
                    digest.update(block)
    except UnreadableError:
        raise
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
    """Files and links of data.zarr and commits that no record names; staging of a sealed store.

    Raises:
        UnreadableError: a folder cannot be listed.
    """
    folders = [DATA]
    while folders:
        folder = folders.pop()
        for name in (f"{folder}/{entry}" for entry in files.entries(root / folder)):
            if files.is_folder(root / name):
                folders.append(name)
            elif name not in named:
                yield name
    expected = {DIGEST_LIST, *map(commit_record.record_name, units)}
    for entry in files.entries(root / COMMITS):
        if f"{COMMITS}/{entry}" not in expected:
            yield f"{COMMITS}/{entry}"
    if files.exists(root / SEAL) and files.exists(root / STAGING):
        yield STAGING
