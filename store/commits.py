"""Commit records: what exists in a store, and what its bytes must be.

A listing proves nothing (Zarr answers a missing chunk with its fill value), so readers trust these
records only. A record names files relative to the store, with size, crc32c and sha256; it holds no
clock and no host, so equal work gives equal records.
"""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import google_crc32c

from caskd.store import files
from caskd.store.errors import CorruptError, UnsafeError
from caskd.store.spec import canonical_json

PLAN = "plan"
PILOT = "pilot"
STAGING = "staging"


@dataclass(frozen=True)
class FileRecord:
    """One file: its name relative to the store, and what its bytes must be."""

    name: str
    size: int
    crc32c: str
    sha256: str

    @classmethod
    def of(cls, name: str, data: bytes) -> "FileRecord":
        """Describe `data` as the content of `name`."""
        return cls(name, len(data), crc32c_hex(data), hashlib.sha256(data).hexdigest())


@dataclass(frozen=True)
class CommitRecord:
    """The decision that a shard (or the plan) consists of these files."""

    unit: str
    file_records: tuple[FileRecord, ...]
    facts: Mapping[str, Any]

    def to_json(self) -> bytes:
        """The record's bytes; equal work gives equal bytes."""
        listed = [vars(record) for record in sorted(self.file_records, key=lambda r: r.name)]
        return canonical_json({"unit": self.unit, "files": listed, **self.facts})

    @property
    def digest(self) -> str:
        """sha256 of the record's bytes; names its staging folder."""
        return hashlib.sha256(self.to_json()).hexdigest()

    def bytes_by_array(self) -> Counter[str]:
        """Bytes per array of data.zarr; everything else counts as `metadata`."""
        sizes: Counter[str] = Counter()
        for item in self.file_records:
            parts = item.name.split("/")
            sizes[parts[1] if len(parts) > 2 else "metadata"] += item.size
        return sizes

    @classmethod
    def from_json(cls, data: bytes, unit: str) -> "CommitRecord":
        """Parse and check a record.

        Raises:
            CorruptError: not a record of this unit, or a file name that leaves the store.
        """
        try:
            value = json.loads(data)
            listed = tuple(FileRecord(**entry) for entry in value.pop("files"))
            found = value.pop("unit")
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
            raise CorruptError(f"commits/{unit}.json: not a commit record.") from None
        if found != unit:
            raise CorruptError(f"commits/{unit}.json: holds the record of {found!r}.")
        for record in listed:
            name = PurePosixPath(record.name)
            if name.is_absolute() or ".." in name.parts or "\\" in record.name:
                raise UnsafeError(f"commits/{unit}.json: names a file outside the store.")
        return cls(unit, listed, value)


def crc32c_hex(data: bytes) -> str:
    """crc32c of `data` as eight hexadecimal digits."""
    return f"{google_crc32c.value(data):08x}"


def shard_unit(shard: int) -> str:
    """Name of a shard's commit record, without `.json`."""
    return f"{shard:05d}"


def record_path(root: Path, unit: str) -> Path:
    """Where the record of `unit` stands."""
    return root / "commits" / f"{unit}.json"


def read_record(root: Path, unit: str) -> CommitRecord:
    """Read the commit record of `unit`."""
    return CommitRecord.from_json(files.read_small(record_path(root, unit)), unit)


def is_committed(root: Path, unit: str) -> bool:
    """Whether the decision about `unit` has been made."""
    return files.regular_size(record_path(root, unit)) is not None


def commit(root: Path, unit: str, contents: Mapping[str, bytes], facts: Mapping[str, Any]) -> bool:
    """Stage `contents` (name -> bytes), decide, and move them into place.

    Returns:
        False when another worker committed this unit with other content: the first commit wins.
    """
    record = CommitRecord(
        unit, tuple(FileRecord.of(name, data) for name, data in contents.items()), facts
    )
    if is_committed(root, unit):
        return read_record(root, unit).digest == record.digest
    for name, data in contents.items():
        files.write_synced(root / STAGING / record.digest / name, data)
    return decide(root, record)


def decide(root: Path, record: CommitRecord) -> bool:
    """Create the record of staged files exclusively, then roll forward; False if another won."""
    record_path(root, record.unit).parent.mkdir(exist_ok=True)
    won = files.create_exclusive(record_path(root, record.unit), record.to_json())
    if not won and read_record(root, record.unit).digest != record.digest:
        shutil.rmtree(root / STAGING / record.digest, ignore_errors=True)
        return False
    roll_forward(root, record)
    return True


def roll_forward(root: Path, record: CommitRecord) -> None:
    """Move the files that `record` names from staging into place; anyone may do it, any time.

    Raises:
        CorruptError: a file is neither in staging nor in place with the recorded size.
    """
    staged = root / STAGING / record.digest
    # By name, so that store.json, which says that a plan is there, comes after data.zarr.
    for item in sorted(record.file_records, key=lambda item: item.name):
        source, target = staged / item.name, root / item.name
        if files.regular_size(source) == item.size:
            try:
                files.move_file(source, target)
            except FileNotFoundError:
                # Another worker rolled the same record forward between the two calls.
                check_size(root, record.unit, item)
        else:
            check_size(root, record.unit, item)
    shutil.rmtree(staged, ignore_errors=True)


def check_size(root: Path, unit: str, item: FileRecord) -> None:
    """Check that a committed file is there with its recorded size.

    Raises:
        CorruptError: names the file and the commit.
    """
    size = files.regular_size(root / item.name)
    if size != item.size:
        got = "missing" if size is None else f"{size:,} bytes"
        raise CorruptError(
            f"{item.name}: {got}, but commit {unit} says {item.size:,} bytes. "
            "Run caskd store verify to see what else is wrong."
        )


def commits_digest_list(root: Path, units: Iterable[str]) -> bytes:
    """The bytes of `commits/commits.sha256`, in sha256sum's own format."""
    lines = (
        f"{hashlib.sha256(files.read_small(record_path(root, unit))).hexdigest()}  {unit}.json\n"
        for unit in units
    )
    return "".join(lines).encode()
