"""Repair a store: remove exactly the files that fail verification, so that a capture restores them.

A damaged shard is removed as a whole, because its record is useless without one of its files. The
plan and the pilot are different, since every shard depends on them. Their records stay, and the
capture may only restore the files that these records name, byte for byte. If such a record is
damaged itself, it is rebuilt from its files, and the seal proves that it equals the original.
"""

import hashlib
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from caskd.store.commits import (
    CommitRecord,
    FileRecord,
    all_units,
    commit_record,
    read_seal,
    seal_content,
    unit_files,
)
from caskd.store.errors import CaskdError, StoreError, StoreNotFoundError
from caskd.store.format import (
    COMMITS,
    DIGEST_LIST,
    SEAL,
    STAGING,
    STATUSES,
    STORE_JSON,
    Array,
    ShardFile,
    StoreSpec,
    canonical_json,
    layout,
)
from caskd.store.io import files, value_text
from caskd.store.verify.unit_check import check_unit, named_record, strays
from caskd.store.write import read_spec


@dataclass
class RepairReport:
    """The changes that a repair made.

    Attributes:
        removed: files and links, relative to the store.
        restored: records that were rebuilt from their files and equal the sealed ones.
        shards: shards that the next capture computes again.
        unsealed: whether the seal was removed.
    """

    removed: list[str] = field(default_factory=list)
    restored: list[str] = field(default_factory=list)
    shards: list[int] = field(default_factory=list)
    unsealed: bool = False


def repair_store(url: str | Path) -> RepairReport:
    """Remove all files that fail verification; no other process may write to the store meanwhile.

    Raises:
        StoreNotFoundError: `url` holds no store.
        CorruptError: the damage is so large that no file can be verified.
    """
    root, report = Path(url), RepairReport()
    if not (
        os.path.lexists(root / STORE_JSON) or commit_record.is_committed(root, commit_record.PLAN)
    ):
        raise StoreNotFoundError(f"{url}: no store; expected a directory with a {STORE_JSON}")
    digests = _proven_digests(root)
    spec = _readable_spec(root, report)
    if spec is None:
        for unit in sorted(commit_record.committed_units(root) - {commit_record.PILOT}):
            _check(root, spec, unit, digests, report)
        _remove_noted(root, report, seal_too=True)
        return report
    for unit in all_units(spec):
        _check(root, spec, unit, digests, report)
    named = _named(root, spec, report)
    report.removed += strays(root, {*all_units(spec)}, named)
    broken_seal = not _seal_is_right(root, spec)
    lost = any(name in named or name.startswith(f"{COMMITS}/") for name in report.removed)
    _remove_noted(root, report, seal_too=broken_seal or lost)
    return report


def _proven_digests(root: Path) -> dict[str, str] | None:
    """The sealed sha256 of each record, by unit; None if the seal is missing or damaged."""
    try:
        data = files.read_small(root, DIGEST_LIST, commit_record.LIST_LIMIT)
        if hashlib.sha256(data).hexdigest() != read_seal(root)["commits_digest"]:
            return None
    except StoreError:
        return None
    lines = [line.split("  ") for line in data.decode("latin-1").splitlines()]
    return {name.removesuffix(".json"): digest for digest, name in lines}


def _seal_is_right(root: Path, spec: StoreSpec) -> bool:
    """Whether the seal, if there is one, equals the totals of the commit records."""
    if not any(os.path.lexists(root / name) for name in (SEAL, DIGEST_LIST)):
        return True
    try:
        totals, digest_list = seal_content(root, spec)
        listed = files.read_small(root, DIGEST_LIST, len(digest_list))
        seal = files.read_small(root, SEAL)
        return listed == digest_list and seal == canonical_json(totals)
    except StoreError:
        return False


def _readable_spec(root: Path, report: RepairReport) -> StoreSpec | None:
    """The spec; None if store.json fails verification, which notes the file for removal."""
    try:
        plan = commit_record.read_record(root, commit_record.PLAN)
    except StoreError:
        # The plan's record is damaged; _check handles that.
        return read_spec(root, str(root))
    item = next((item for item in plan.file_records if item.name == STORE_JSON), None)
    try:
        data = files.read_small(root, STORE_JSON)
        if item is not None and commit_record.crc32_hex(data) == item.crc32:
            return StoreSpec.from_json(data, str(root))
    except StoreError:
        pass
    report.removed.append(STORE_JSON)
    return None


def _check(
    root: Path,
    spec: StoreSpec | None,
    unit: str,
    digests: dict[str, str] | None,
    report: RepairReport,
) -> None:
    """Check one unit and note the files to remove."""
    if not os.path.lexists(root / commit_record.record_name(unit)) and digests is None:
        return
    proven = None if digests is None else digests.get(unit)
    found = check_unit(root, spec, unit, full=True)
    good = found.record_problem is None and (proven is None or proven == _digest(root, unit))
    if unit.isdigit():
        if not good or found.bad:
            report.shards.append(int(unit))
            report.removed += [commit_record.record_name(unit), *sorted(found.names)]
        return
    if spec is None:
        report.removed += sorted(found.bad)
    elif not good and not _restore(root, spec, unit, proven):
        report.removed.append(commit_record.record_name(unit))
        if unit == commit_record.PILOT:
            # The orders of ids that the shards were encoded with are lost.
            report.removed += sorted(found.names)
            report.shards += range(spec.num_shards)
            report.removed += [
                name
                for shard in map(commit_record.shard_unit, range(spec.num_shards))
                for name in (commit_record.record_name(shard), *unit_files(spec, shard))
            ]
    elif not good:
        report.restored.append(commit_record.record_name(unit))
    else:
        report.removed += sorted(found.bad)


def _digest(root: Path, unit: str) -> str:
    data = files.read_small(root, commit_record.record_name(unit), commit_record.RECORD_LIMIT)
    return hashlib.sha256(data).hexdigest()


def _restore(root: Path, spec: StoreSpec, unit: str, proven: str | None) -> bool:
    """Rebuild the record of the plan or the pilot; False if it differs from the sealed one."""
    if proven is None:
        return False
    try:
        names = unit_files(spec, unit)
        if unit == commit_record.PLAN:
            vocab = root / layout.VOCAB_LAYOUTS[0].key(0)
            names += [f"{vocab.parent.relative_to(root)}/{n}" for n in os.listdir(vocab.parent)]
        described = tuple(FileRecord.of(name, _read(root, name)) for name in names)
        record = CommitRecord(unit, described, _facts(root, spec, unit))
    except (CaskdError, OSError):
        return False
    if record.digest != proven:
        return False
    _remove(root, commit_record.record_name(unit))
    files.replace_file(root / commit_record.record_name(unit), record.to_json(), root / STAGING)
    files.remove_tree(root / STAGING)
    return True


def _read(root: Path, name: str) -> bytes:
    with files.open_inside(root, name) as handle:
        return b"".join(files.blocks(handle))


def _facts(root: Path, spec: StoreSpec, unit: str) -> dict[str, Any]:
    """The counts in the record of the plan or the pilot."""
    statuses: Counter[str] = Counter()
    if unit == commit_record.PLAN:
        status, rows = (_example_array(root, spec, name) for name in ("status", "row_count"))
        statuses.update(STATUSES[value] for value in status[rows == 0])
    return {"num_rows": 0, "statuses": dict(statuses)}


def _example_array(root: Path, spec: StoreSpec, name: str) -> Array:
    array = next(a for a in layout.EXAMPLE_LAYOUTS if a.name == name)
    parts = []
    for shard in range(-(-spec.num_examples // array.shard)):
        left = spec.num_examples - shard * array.shard
        opened = ShardFile(root / array.key(shard), array)
        parts += [opened.chunk(i) for i in range(-(-min(left, array.shard) // array.chunk))]
    return np.concatenate(parts)[: spec.num_examples]


def _named(root: Path, spec: StoreSpec, report: RepairReport) -> set[str]:
    """Files of every unit, damaged or not; any other file is a stray."""
    named: set[str] = {STORE_JSON, *report.removed}
    for unit in all_units(spec):
        try:
            named |= {item.name for item in named_record(root, spec, unit).file_records}
        except StoreError:
            named |= {*unit_files(spec, unit)}
    return named


def _remove_noted(root: Path, report: RepairReport, *, seal_too: bool) -> None:
    """Remove the noted files: the seal first, then records, then arrays."""
    if seal_too:
        report.unsealed = any(os.path.lexists(root / name) for name in (SEAL, DIGEST_LIST))
        report.removed += [SEAL, DIGEST_LIST]
    order = {SEAL: 0, DIGEST_LIST: 1}
    report.removed = sorted(
        {name for name in report.removed if os.path.lexists(root / name)},
        key=lambda name: (order.get(name, 2), not name.startswith(f"{COMMITS}/"), name),
    )
    for name in report.removed:
        _remove(root, name)


def _remove(root: Path, name: str) -> None:
    """Remove `name`; if a folder of its path is a link, remove the link, never its target."""
    parts = name.split("/")
    for depth in range(1, len(parts) + 1):
        path = root.joinpath(*parts[:depth])
        if path.is_symlink() or depth == len(parts) or not path.is_dir():
            break
    if path.is_dir() and not path.is_symlink():
        files.remove_tree(path)
    else:
        files.unlink(path)
    files.fsync_directory(path.parent)


def repair_lines(url: str, report: RepairReport) -> list[str]:
    """The lines that `caskd store repair` prints."""
    if not report.removed and not report.restored:
        return [f"{url}: nothing to repair"]
    lines = [f"rebuilt: {name}" for name in report.restored]
    lines += [f"removed: {value_text(name)[1:-1]}" for name in report.removed]
    if report.unsealed:
        again = f"computes {len(report.shards)} shards again" if report.shards else "seals it again"
        lines.append(f"{url}: no longer sealed; caskd precompute with the same inputs {again}")
    return lines
