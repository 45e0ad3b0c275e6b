"""The ledger of a store that is open for reading: its commit records, each read and checked once.

The seal protects every file: `seal.json` holds the digest of `commits/commits.sha256`, that file
holds the digest of every record, and a record holds size and crc32 of every file. A file is
compared with its record when it is first opened. That finds files that were swapped, or that are
left from another capture, although their chunks are intact.
"""

import hashlib
import math
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from caskd.store.commits import commit_record
from caskd.store.commits.commit_record import CommitRecord, FileRecord
from caskd.store.errors import CorruptError, IncompleteError
from caskd.store.format import (
    DATA,
    DIGEST_LIST,
    SEAL,
    STAGING,
    STORE_JSON,
    StoreSpec,
    layout,
    untrusted_json,
)
from caskd.store.io import files


def all_units(spec: StoreSpec) -> list[str]:
    """Every unit of a finished store, the plan first."""
    pilot = [commit_record.PILOT] if spec.row_encoding.uses_id_orders else []
    return [commit_record.PLAN, *pilot, *map(commit_record.shard_unit, range(spec.num_shards))]


def unit_files(spec: StoreSpec, unit: str) -> list[str]:
    """Files that the record of `unit` must name, without the shards of vocab_bytes in the plan."""
    rows = spec.row_layouts()
    if unit == commit_record.PILOT:
        return _whole(layout.ID_ORDER, layout.num_orders(spec.num_rows) * spec.vocab_size)
    if unit != commit_record.PLAN:
        return [array.key(int(unit)) for array in rows]
    sizes = {
        **dict.fromkeys(layout.TOKEN_LAYOUTS, spec.num_tokens),
        **dict.fromkeys(layout.EXAMPLE_LAYOUTS, spec.num_examples),
        layout.VOCAB_LAYOUTS[1]: spec.vocab_size + 1,
    }
    names = [STORE_JSON, f"{DATA}/zarr.json", *(array.metadata_key for array in rows)]
    for array, length in sizes.items():
        names += _whole(array, length)
    return [*names, layout.VOCAB_LAYOUTS[0].metadata_key]


def check_named_files(record: CommitRecord, spec: StoreSpec) -> None:
    """Check that a record names exactly the files of its unit.

    Raises:
        CorruptError: names the first file that is missing or unexpected.
    """
    named = {item.name for item in record.file_records}
    wanted = {*unit_files(spec, record.unit)}
    rest = named - wanted
    if record.unit == commit_record.PLAN:
        vocab = layout.VOCAB_LAYOUTS[0]
        rest -= {vocab.key(shard) for shard in range(len(rest))}
    if rest or wanted - named:
        verb = "names" if rest else "does not name"
        raise CorruptError(
            f"{commit_record.record_name(record.unit)}: {verb} {min(rest or wanted - named)}"
        )


def _whole(array: layout.ArrayLayout, length: int) -> list[str]:
    shards = range(math.ceil(length / array.shard))
    return [array.metadata_key, *(array.key(shard) for shard in shards)]


def _check_sizes_once(root: Path, record: CommitRecord) -> None:
    for item in record.file_records:
        commit_record.check_size(root, record.unit, item)


def read_seal(root: Path) -> dict[str, Any]:
    """Read `seal.json` and check its fields and types.

    Raises:
        CorruptError: it is not a seal.
    """
    value = untrusted_json.parse_json(files.read_small(root, SEAL), f"{root.name}/{SEAL}")
    if not untrusted_json.is_seal(value):
        raise CorruptError(f"{root.name}/{SEAL}: not a seal")
    return dict(value)


def sealed_digests(root: Path, units: Sequence[str]) -> dict[str, str]:
    """sha256 of every record, from `commits/commits.sha256`.

    Raises:
        CorruptError: it does not list exactly these units.
    """
    data = files.read_small(root, DIGEST_LIST, commit_record.LIST_LIMIT)
    lines = data.decode("latin-1").split("\n")
    digests = dict(zip(units, (line[:64] for line in lines), strict=False))
    if len(digests) < len(units) or commit_record.digest_list(digests) != data:
        raise CorruptError(f"{root.name}/{DIGEST_LIST}: does not list this store's commits")
    return digests


class Ledger:
    """The records of a store that is open for reading."""

    def __init__(self, root: Path, spec: StoreSpec) -> None:
        self.root, self.spec, self.name = root, spec, root.name
        self._records: dict[str, dict[str, FileRecord]] = {}
        self._checked: dict[str, tuple[int, ...]] = {}

    @property
    def sealed(self) -> bool:
        """Whether the store is finished."""
        return files.size_inside(self.root, SEAL) is not None

    @cached_property
    def digests(self) -> dict[str, str] | None:
        """sha256 of every record; None for a store that is not sealed.

        Raises:
            CorruptError: they contradict the seal.
        """
        if not self.sealed:
            return None
        digests = sealed_digests(self.root, all_units(self.spec))
        found = hashlib.sha256(commit_record.digest_list(digests)).hexdigest()
        if found != read_seal(self.root)["commits_digest"]:
            raise CorruptError(
                f"{self.name}/{SEAL}: commits_digest differs from the sha256 of {DIGEST_LIST}"
            )
        return digests

    def record(self, unit: str) -> CommitRecord:
        """Read the record of `unit`; compare it with the seal if the store is sealed.

        Raises:
            IncompleteError: the unit is not committed yet.
            CorruptError: the record is missing, changed, or names the wrong files.
        """
        if not commit_record.is_committed(self.root, unit):
            if self.sealed:
                raise CorruptError(
                    f"{self.name}/{commit_record.record_name(unit)}: missing from a sealed store"
                )
            raise IncompleteError(
                f"{self.name}: {unit} is not committed yet; expected a committed shard; run caskd "
                "precompute to fill the store"
            )
        data = commit_record.read_bytes(self.root, unit)
        if self.digests is not None and hashlib.sha256(data).hexdigest() != self.digests[unit]:
            raise CorruptError(
                f"{self.name}/{commit_record.record_name(unit)}: its sha256 differs from "
                f"{DIGEST_LIST}"
            )
        record = CommitRecord.from_json(data, unit)
        check_named_files(record, self.spec)
        return record

    def item(self, unit: str, name: str) -> FileRecord:
        """The entry of the file `name` in the record of `unit`; checks the size of all its files.

        Raises:
            CorruptError: the record does not name the file, or a file of the unit has a wrong size.
        """
        if unit not in self._records:
            record = self.record(unit)
            self._check_sizes(record)
            self._records[unit] = {item.name: item for item in record.file_records}
        if name not in self._records[unit]:
            raise CorruptError(
                f"{self.name}/{commit_record.record_name(unit)}: does not name {name}"
            )
        return self._records[unit][name]

    def _check_sizes(self, record: CommitRecord) -> None:
        try:
            _check_sizes_once(self.root, record)
        except CorruptError:
            if not self.sealed and files.is_folder(self.root / STAGING / record.digest):
                raise IncompleteError(
                    f"{self.name}: {record.unit} is committed, but its files are still in staging; "
                    "run caskd precompute again to finish it"
                ) from None
            # Another process may have moved the last file between the two looks.
            _check_sizes_once(self.root, record)

    def check_file(self, unit: str, name: str) -> None:
        """Compare a file with its record, unless this file was compared before.

        Raises:
            CorruptError: its bytes differ from those that were committed.
        """
        item = self.item(unit, name)
        with files.reading(f"{self.name}/{name}"):
            status = os.lstat(self.root / name)
        # Any change of inode or change time means another file, even if the clock was wrong.
        identity = (status.st_ino, status.st_size, status.st_ctime_ns)
        if self._checked.get(name) == identity:
            return
        if f"{files.crc32_inside(self.root, name):08x}" != item.crc32:
            raise CorruptError(f"{self.name}/{name}: its crc32 differs from commit {unit}")
        self._checked[name] = identity

    def check_spec(self, data: bytes) -> None:
        """Compare the bytes of store.json with the plan's record.

        Raises:
            CorruptError: they differ.
        """
        named = {item.name: item for item in self.record(commit_record.PLAN).file_records}
        if commit_record.crc32_hex(data) != named[STORE_JSON].crc32:
            raise CorruptError(f"{self.name}/{STORE_JSON}: its crc32 differs from commit plan")
