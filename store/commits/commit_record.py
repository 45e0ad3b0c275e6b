"""Commit records: the committed files of a store, with sizes and checksums.

A directory listing proves nothing (zarr reads a missing chunk as its fill value), so readers trust
only these records. A record names files relative to the store. It contains no time and no host
name, so equal work gives equal records.
"""

import hashlib
import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c

from caskd.store.errors import CorruptError
from caskd.store.format import COMMITS, canonical_json, untrusted_json
from caskd.store.io import files, value_text

PLAN = "plan"
PILOT = "pilot"
RECORD_LIMIT = 16 << 20  # bytes of a record
LIST_LIMIT = 128 << 20  # bytes of commits.sha256


@dataclass(frozen=True)
class FileRecord:
    """One file: its name relative to the store, its size and its checksums.

    A shard file is a sequence of pieces that each end in their own crc32c. The crc32c of such a
    sequence depends only on the sizes of the pieces: it finds damage, but cannot distinguish two
    shards. crc32 has another polynomial and can.
    """

    name: str
    size: int
    crc32c: str
    sha256: str
    crc32: str

    @classmethod
    def of(cls, name: str, data: bytes) -> "FileRecord":
        """The record of a file `name` with content `data`."""
        digest = hashlib.sha256(data).hexdigest()
        return cls(name, len(data), crc32c_hex(data), digest, crc32_hex(data))


@dataclass(frozen=True)
class CommitRecord:
    """The files and counts of one unit: a shard, the plan or the pilot."""

    unit: str
    file_records: tuple[FileRecord, ...]
    facts: Mapping[str, Any]

    def to_json(self) -> bytes:
        """The record's bytes; equal work gives equal bytes."""
        listed = [vars(record) for record in sorted(self.file_records, key=lambda r: r.name)]
        return canonical_json({"unit": self.unit, "files": listed, **self.facts})

    @property
    def digest(self) -> str:
        """sha256 of the record's bytes; also the name of its staging folder."""
        return hashlib.sha256(self.to_json()).hexdigest()

    def bytes_by_array(self) -> Counter[str]:
        """Bytes per array of data.zarr; other files count as `metadata`."""
        sizes: Counter[str] = Counter()
        for item in self.file_records:
            parts = item.name.split("/")
            sizes[parts[1] if len(parts) > 2 else "metadata"] += item.size
        return sizes

    @classmethod
    def from_json(cls, data: bytes, unit: str) -> "CommitRecord":
        """Parse and check a record.

        Raises:
            CorruptError: not a record of this unit.
            UnsafeError: invalid JSON, or a name of a file outside the store.
        """
        where = record_name(unit)
        value = untrusted_json.parse_json(data, where)
        if not untrusted_json.is_record(value):
            raise CorruptError(f"{where}: not a commit record")
        listed = tuple(FileRecord(**entry) for entry in value.pop("files"))
        found = value.pop("unit")
        if found != unit:
            raise CorruptError(f"{where}: holds the record of {value_text(found)}; expected {unit}")
        untrusted_json.check_names([record.name for record in listed], where)
        return cls(unit, listed, value)


def crc32c_hex(data: bytes) -> str:
    """crc32c of `data` as eight hexadecimal digits."""
    return f"{google_crc32c.value(data):08x}"


def crc32_hex(data: bytes) -> str:
    """zlib's crc32 of `data` as eight hexadecimal digits."""
    return f"{zlib.crc32(data):08x}"


def shard_unit(shard: int) -> str:
    """Name of a shard's commit record, without `.json`."""
    return f"{shard:05d}"


def record_name(unit: str) -> str:
    """Name of the record of `unit`, relative to the store."""
    return f"{COMMITS}/{unit}.json"


def read_bytes(root: Path, unit: str) -> bytes:
    """Read the commit record of `unit` as bytes."""
    return files.read_small(root, record_name(unit), RECORD_LIMIT)


def read_record(root: Path, unit: str) -> CommitRecord:
    """Read the commit record of `unit`."""
    return CommitRecord.from_json(read_bytes(root, unit), unit)


def committed_units(root: Path) -> set[str]:
    """Units that have a record, from one listing; the records themselves are not checked."""
    names = files.entries(root / COMMITS)
    return {name.removesuffix(".json") for name in names if name.endswith(".json")}


def is_committed(root: Path, unit: str) -> bool:
    """Whether `unit` has a commit record."""
    return files.size_inside(root, record_name(unit)) is not None


def check_size(root: Path, unit: str, item: FileRecord) -> None:
    """Check that a committed file exists with its recorded size.

    Raises:
        CorruptError: names the file and the commit.
    """
    size = files.size_inside(root, item.name)
    if size != item.size:
        got = "missing" if size is None else f"{size:,} bytes"
        raise CorruptError(
            f"{item.name}: {got}, but commit {unit} records {item.size:,} bytes",
            cure="run caskd store verify to see what else is damaged",
        )


def digest_list(digests: Mapping[str, str]) -> bytes:
    """The bytes of `commits/commits.sha256`, in the format of sha256sum."""
    return "".join(f"{digest}  {unit}.json\n" for unit, digest in digests.items()).encode()
