"""Repair a store: remove exactly the files that fail verification, so that a capture restores them.

A damaged shard is removed as a whole, because its record is useless without one of its files. The
plan and the pilot are different, since every shard depends on them. Their records stay, and the
capture may only restore the files that these records name, byte for byte. If such a record is
damaged itself, it is rebuilt from its files, and the seal proves that it equals the original.

A file is removed only if its bytes were read and fail verification, or if a file beside it that its
record names does not exist. A file that cannot be read may be intact: it stops the repair.
"""

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from caskd.store.commits import (
    CommitRecord,
    all_units,
    commit_record,
    read_seal,
    seal_content,
    unit_files,
)
from caskd.store.errors import (
    StoreError,
    StoreNotFoundError,
    StoreWriteError,
    UnreadableError,
    UnsafeError,
)
from caskd.store.format import (
    COMMITS,
    DIGEST_LIST,
    SEAL,
    STAGING,
    STORE_JSON,
    StoreSpec,
    canonical_json,
)
from caskd.store.io import counted, files, refuse_mixup, value_text
from caskd.store.verify.rebuild import rebuilt_record
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

    Every file is read, and every change decided, before the first change.

    Raises:
        StoreNotFoundError: `url` holds no store.
        UnreadableError: a file could not be read; nothing was changed.
        UnsafeError: another version of caskd wrote the store; nothing was changed.
        StoreWriteError: a folder is not writable; nothing was changed.
        CorruptError: the damage is so large that no file can be verified.
    """
    root = Path(url)
    try:
        found = _survey(root, url)
        targets = [_target(root, name) for name in found.report.removed]
    except UnreadableError as error:
        raise UnreadableError(f"{url}: not repaired, nothing was changed. {error}") from None
    _check_writable(root, [path.parent for path in targets])
    for unit, record in found.rebuilt.items():
        name = commit_record.record_name(unit)
        _remove(_target(root, name))
        files.replace_file(root / name, record.to_json(), root / STAGING)
        files.remove_tree(root / STAGING)
    for path in targets:
        _remove(path)
    return found.report


@dataclass
class _Survey:
    """What a store's files say, and what is to be changed."""

    root: Path
    digests: dict[str, str] | None
    """The sealed sha256 of each record, by unit; None if the seal is missing or damaged."""
    report: RepairReport = field(default_factory=RepairReport)
    rebuilt: dict[str, CommitRecord] = field(default_factory=dict)
    """Records, by unit, that replace damaged ones."""
    unreadable: list[str] = field(default_factory=list)


def _survey(root: Path, url: str | Path) -> _Survey:
    """Read every file and decide on every change."""
    if not (_present(root, STORE_JSON) or commit_record.is_committed(root, commit_record.PLAN)):
        refuse_mixup(root, str(url), "store")
        raise StoreNotFoundError(
            f"{url}: no store; expected a directory with a {STORE_JSON}; check the path"
        )
    found = _Survey(root, _proven_digests(root))
    spec = _readable_spec(root, found.report)
    if spec is None:
        units = sorted(commit_record.committed_units(root) - {commit_record.PILOT})
    else:
        units = all_units(spec)
    for unit in units:
        _check(found, spec, unit)
    if found.unreadable:
        more = f" ({len(found.unreadable)} files are unreadable)" if found.unreadable[1:] else ""
        raise UnreadableError(f"{found.unreadable[0]}{more}")
    if spec is None:
        _note_removals(found, seal_too=True)
        return found
    named = _named(found, spec)
    found.report.removed += strays(root, {*units}, named)
    broken_seal = not _seal_is_right(found, spec)
    lost = any(name in named or name.startswith(f"{COMMITS}/") for name in found.report.removed)
    _note_removals(found, seal_too=broken_seal or lost)
    return found


def _present(root: Path, name: str) -> bool:
    return files.mode_of(root / name, name) is not None


def _proven_digests(root: Path) -> dict[str, str] | None:
    """The sealed sha256 of each record, by unit; None if the seal is missing or damaged."""
    try:
        data = files.read_small(root, DIGEST_LIST, commit_record.LIST_LIMIT)
        if hashlib.sha256(data).hexdigest() != read_seal(root)["commits_digest"]:
            return None
    except UnreadableError:
        raise
    except StoreError:
        return None
    lines = [line.split("  ") for line in data.decode("latin-1").splitlines()]
    return {name.removesuffix(".json"): digest for digest, name in lines}


def _seal_is_right(found: _Survey, spec: StoreSpec) -> bool:
    """Whether the seal, if there is one, equals the totals of the commit records."""
    if not any(_present(found.root, name) for name in (SEAL, DIGEST_LIST)):
        return True
    try:
        rebuilt = {unit: record.to_json() for unit, record in found.rebuilt.items()}
        totals, digest_list = seal_content(found.root, spec, rebuilt)
        listed = files.read_small(found.root, DIGEST_LIST, len(digest_list))
        seal = files.read_small(found.root, SEAL)
        return listed == digest_list and seal == canonical_json(totals)
    except UnreadableError:
        raise
    except StoreError:
        return False


def _readable_spec(root: Path, report: RepairReport) -> StoreSpec | None:
    """The spec; None if store.json fails verification, which notes the file for removal.

    Raises:
        UnsafeError: its bytes are those of the plan, but this version cannot read them.
    """
    try:
        plan = commit_record.read_record(root, commit_record.PLAN)
    except UnreadableError:
        raise
    except StoreError:
        # The plan's record is damaged; _check handles that.
        return read_spec(root, str(root))
    item = next((item for item in plan.file_records if item.name == STORE_JSON), None)
    try:
        data = files.read_small(root, STORE_JSON)
    except UnreadableError:
        raise
    except StoreError:
        data = None
    if data is not None and item is not None and commit_record.crc32_hex(data) == item.crc32:
        return StoreSpec.from_json(data, str(root))
    report.removed.append(STORE_JSON)
    return None


def _check(found: _Survey, spec: StoreSpec | None, unit: str) -> None:
    """Check one unit and note the files to remove."""
    root, digests, report = found.root, found.digests, found.report
    if digests is None and not _present(root, commit_record.record_name(unit)):
        return
    proven = None if digests is None else digests.get(unit)
    checked = check_unit(root, spec, unit, full=True)
    found.unreadable += checked.unreadable.values()
    if checked.unreadable:
        return
    good = _record_is_good(root, unit, checked.record_problem, proven)
    if unit.isdigit():
        if not good or checked.bad:
            report.shards.append(int(unit))
            report.removed += [commit_record.record_name(unit), *sorted(checked.names)]
    elif good or spec is None:
        report.removed += sorted(checked.bad)
    else:
        _replace(found, spec, unit, checked.names, proven)


def _record_is_good(root: Path, unit: str, problem: str | None, proven: str | None) -> bool:
    """Whether a record can be parsed and is the sealed one.

    Raises:
        UnsafeError: it is the sealed one, but this version cannot read it.
    """
    if proven is None:
        return problem is None
    try:
        sealed = hashlib.sha256(commit_record.read_bytes(root, unit)).hexdigest() == proven
    except UnreadableError:
        raise
    except StoreError:
        return False
    if sealed and problem is not None:
        raise UnsafeError(
            f"{problem} Its bytes are those that were sealed, so this version of caskd cannot read "
            "it; nothing was changed",
            cure="use the version that wrote the store",
        )
    return sealed


def _replace(
    found: _Survey, spec: StoreSpec, unit: str, names: set[str], proven: str | None
) -> None:
    """Rebuild the damaged record of the plan or the pilot, or note what is lost with it."""
    record = rebuilt_record(found.root, spec, unit, proven)
    if record is not None:
        found.rebuilt[unit] = record
        found.report.restored.append(commit_record.record_name(unit))
        return
    found.report.removed.append(commit_record.record_name(unit))
    if unit == commit_record.PILOT:
        # The orders of ids that the shards were encoded with are lost.
        found.report.removed += sorted(names)
        found.report.shards += range(spec.num_shards)
        found.report.removed += [
            name
            for shard in map(commit_record.shard_unit, range(spec.num_shards))
            for name in (commit_record.record_name(shard), *unit_files(spec, shard))
        ]


def _named(found: _Survey, spec: StoreSpec) -> set[str]:
    """Files of every unit, damaged or not; any other file is a stray."""
    named: set[str] = {STORE_JSON, *found.report.removed}
    for unit in all_units(spec):
        try:
            record = found.rebuilt.get(unit) or named_record(found.root, spec, unit)
            named |= {item.name for item in record.file_records}
        except UnreadableError:
            raise
        except StoreError:
            named |= {*unit_files(spec, unit)}
    return named


def _note_removals(found: _Survey, *, seal_too: bool) -> None:
    """Put the existing ones of the noted files in order: the seal, then records, then arrays."""
    report = found.report
    if seal_too:
        report.unsealed = any(_present(found.root, name) for name in (SEAL, DIGEST_LIST))
        report.removed += [SEAL, DIGEST_LIST]
    order = {SEAL: 0, DIGEST_LIST: 1}
    report.removed = sorted(
        {name for name in report.removed if _present(found.root, name)},
        key=lambda name: (order.get(name, 2), not name.startswith(f"{COMMITS}/"), name),
    )


def _target(root: Path, name: str) -> Path:
    """The path to remove for `name`: if a folder of its path is a link, the link."""
    parts = name.split("/")
    for depth in range(1, len(parts)):
        path = root.joinpath(*parts[:depth])
        if not files.is_folder(path):
            return path
    return root / name


def _check_writable(root: Path, folders: Iterable[Path]) -> None:
    """Check that entries of all folders can be removed, before the first one is.

    Raises:
        StoreWriteError: names the first folder where they cannot.
    """
    for folder in folders:
        if not os.access(folder, os.W_OK | os.X_OK):
            raise StoreWriteError(
                f"cannot write {folder}: expected a folder whose files this process may remove. "
                f"Nothing was changed in {root}; get permission to write there, then run the same "
                "command again."
            )


def _remove(path: Path) -> None:
    if files.is_folder(path):
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
        shards = counted(len(report.shards), "shard")
        again = f"computes {shards} again" if report.shards else "seals it again"
        lines.append(f"{url}: no longer sealed; caskd precompute with the same inputs {again}")
    return lines
