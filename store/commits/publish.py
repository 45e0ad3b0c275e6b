"""Committing: bytes are staged and synced, a create-only record decides, then the files move.

A unit is the plan, the pilot or a shard. Any number of workers may be at the same unit, die at any
step, or wake up late: the first record that is created wins, and what it names is finished by
whoever comes by. Only bytes that a record names enter data.zarr.
"""

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from caskd.store.commits.commit_record import (
    PILOT,
    PLAN,
    STAGING,
    CommitRecord,
    FileRecord,
    check_size,
    is_committed,
    read_record,
    record_name,
)
from caskd.store.errors import CorruptError, StoreWriteError
from caskd.store.io import faults, files

RENAME_ATTEMPTS = 8


def is_complete(root: Path, unit: str) -> bool:
    """Whether `unit` is committed and all its files are there; moves those that wait in staging."""
    if not is_committed(root, unit):
        return False
    try:
        roll_forward(root, read_record(root, unit))
    except CorruptError:
        return False
    return True


def new_folder(root: Path) -> Path:
    """A folder in staging that is nobody else's, to be filled with `stage`."""
    return root / STAGING / uuid.uuid4().hex


def check_writable(root: Path) -> None:
    """Write and remove a few bytes in staging, before anything expensive is computed.

    Raises:
        StoreWriteError: the place is full, read-only or not ours.
    """
    draft = new_folder(root)
    try:
        files.write_synced(draft, b"caskd")
    except FileNotFoundError:
        check_overtaken(root, PLAN)
    finally:
        files.unlink(draft)
        sweep(root)


def staged_name(name: str) -> str:
    """What a file is called while it is in staging: one flat folder is one sync."""
    return name.replace("/", "+")


def stage(folder: Path, name: str, data: bytes) -> FileRecord:
    """Write and sync one file of a commit to come."""
    files.write_synced(folder / staged_name(name), data)
    return FileRecord.of(name, data)


def commit(root: Path, unit: str, contents: Mapping[str, bytes], facts: Mapping[str, Any]) -> bool:
    """Stage `contents` (name -> bytes), decide, and move them into place.

    Returns:
        False when another worker committed this unit with other content: the first commit wins.
    """
    described = tuple(FileRecord.of(name, data) for name, data in contents.items())
    record = CommitRecord(unit, described, facts)
    if is_committed(root, unit):
        if read_record(root, unit).digest != record.digest:
            return False
        if is_complete(root, unit):
            return True
    folder = new_folder(root)
    try:
        for name, data in contents.items():
            stage(folder, name, data)
        return publish(root, folder, record)
    except FileNotFoundError:
        check_overtaken(root, unit)
        return read_record(root, unit).digest == record.digest
    finally:
        files.remove_tree(folder)
        sweep(root)


def publish(root: Path, folder: Path, record: CommitRecord) -> bool:
    """Decide for the files staged in `folder` and move them into place; False if others won."""
    kind = record.unit if record.unit in (PLAN, PILOT) else "shard"
    files.fsync_directory(folder)
    faults.point(f"{kind}.staged")
    _show(root, folder, record)
    faults.point(f"{kind}.published")
    won = files.create_exclusive(root / record_name(record.unit), record.to_json(), root / STAGING)
    faults.point(f"{kind}.won" if won else f"{kind}.lost")
    if not won and read_record(root, record.unit).digest != record.digest:
        files.remove_tree(root / STAGING / record.digest)
        return False
    roll_forward(root, record)
    return True


def check_overtaken(root: Path, unit: str) -> None:
    """Check that staging went away under our hands because others finished and sealed the store.

    Raises:
        StoreWriteError: `unit` is not decided, so somebody else removed it.
    """
    if not is_committed(root, unit):
        raise StoreWriteError(
            f"{root}: staging was removed during the work. Run the same command again."
        ) from None


def _show(root: Path, folder: Path, record: CommitRecord) -> None:
    """Give a complete folder the name under which everybody finds it."""
    shared = root / STAGING / record.digest
    for attempts_left in reversed(range(RENAME_ATTEMPTS)):
        try:
            files.rename(folder, shared)
            break
        except FileExistsError:
            # A twin's folder of the same digest holds the same bytes and serves as well as ours;
            # once the twin is done it is gone, and ours takes its name after all.
            if shared.is_dir():
                break
            if not attempts_left:
                raise StoreWriteError(f"cannot write {shared}: it comes and goes.") from None
    files.fsync_directory(root / STAGING)
    files.fsync_directory(root)


def roll_forward(root: Path, record: CommitRecord) -> None:
    """Move the files that `record` names from staging into place; anyone may do it, any time.

    Raises:
        CorruptError: a file is neither in staging nor in place with the recorded size.
    """
    staged = root / STAGING / record.digest
    kind = record.unit if record.unit in (PLAN, PILOT) else "shard"
    if not staged.is_dir() or (root / STAGING).is_symlink():
        for item in record.file_records:
            check_size(root, record.unit, item)
        return
    names = [item.name for item in record.file_records]
    for name in names:
        files.size_inside(root, name)  # refuses a way through links
        files.make_directories((root / name).parent)
    # A folder has to be durable before the only copy of something moves into it.
    files.sync_ancestors(root, names)
    # By name, so that store.json, which says that a plan is there, comes after data.zarr.
    for item in sorted(record.file_records, key=lambda item: item.name):
        faults.point(f"{kind}.moving")
        _move(root, staged, record.unit, item)
    files.sync_ancestors(root, names)
    faults.point(f"{kind}.moved")
    # Staging goes only when what came out of it is durable.
    files.remove_tree(staged)
    faults.point(f"{kind}.finished")


def _move(root: Path, staged: Path, unit: str, item: FileRecord) -> None:
    source, target = staged / staged_name(item.name), root / item.name
    if files.regular_size(source) != item.size:
        check_size(root, unit, item)
        return
    there = files.size_inside(root, item.name) == item.size
    if there and f"{files.crc32_inside(root, item.name):08x}" == item.crc32:
        return
    try:
        files.rename(source, target)
    except FileNotFoundError:
        # Another worker rolled the same record forward between the two calls.
        check_size(root, unit, item)


def sweep(root: Path) -> None:
    """Remove staging from a sealed store: whatever is still in it came too late."""
    if files.size_inside(root, "seal.json") is not None and (root / STAGING).is_dir():
        files.remove_tree(root / STAGING)
        files.fsync_directory(root)
