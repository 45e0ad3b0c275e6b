"""Publishing a unit: stage and sync its files, create its record exclusively, move the files.

A unit is the plan or a shard. Any number of workers may write the same unit, die at any
step, or continue late. The first record that is created wins, and any worker may finish moving its
files. Only files that a record names enter data.zarr.
"""

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from caskd.store.commits.commit_record import (
    PLAN,
    CommitRecord,
    FileRecord,
    check_size,
    is_committed,
    read_record,
    record_name,
)
from caskd.store.errors import CorruptError, StoreWriteError
from caskd.store.format import SEAL, STAGING
from caskd.store.io import faults, files

RENAME_ATTEMPTS = 8


def is_complete(root: Path, unit: str) -> bool:
    """Whether `unit` is committed and all its files exist; moves those still in staging."""
    if not is_committed(root, unit):
        return False
    try:
        roll_forward(root, read_record(root, unit))
    except CorruptError:
        return False
    return True


def new_folder(root: Path) -> Path:
    """A path in staging with a new, unique name; `stage` writes files into it."""
    return root / STAGING / uuid.uuid4().hex


def check_writable(root: Path) -> None:
    """Write and remove a few bytes in staging, before anything expensive is computed.

    Raises:
        StoreWriteError: the disk is full, or the directory is not writable.
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
    """Name of a file in staging: one flat folder needs a single sync."""
    return name.replace("/", "+")


def stage(folder: Path, name: str, data: bytes) -> FileRecord:
    """Write and sync one file of a unit."""
    files.write_synced(folder / staged_name(name), data)
    return FileRecord.of(name, data)


def commit(root: Path, unit: str, contents: Mapping[str, bytes], facts: Mapping[str, Any]) -> bool:
    """Stage `contents` (name -> bytes), create the record of `unit`, and move the files.

    Returns:
        False if another worker committed this unit with other content; the first commit wins.
    """
    described = tuple(FileRecord.of(name, data) for name, data in contents.items())
    record = CommitRecord(unit, described, facts)
    if unit != PLAN and not is_committed(root, PLAN):
        raise StoreWriteError(
            f"{root}: the store was moved or removed during this run; expected its plan there; "
            "move it back, or pass its new place as --store, then run the same command again; "
            "committed shards are kept"
        )
    if is_committed(root, unit):
        complete = is_complete(root, unit)  # moves the winner's files, which the caller may read
        if read_record(root, unit).digest != record.digest:
            return False
        if complete:
            return True
    folder = new_folder(root)
    try:
        for name, data in contents.items():
            stage(folder, name, data)
        return publish(root, folder, record)
    except FileNotFoundError:
        check_overtaken(root, unit)
        is_complete(root, unit)
        return read_record(root, unit).digest == record.digest
    finally:
        files.remove_tree(folder)
        sweep(root)


def publish(root: Path, folder: Path, record: CommitRecord) -> bool:
    """Commit the files staged in `folder` and move them.

    If another worker committed first, this one moves the winner's files: the winner may be slow or
    dead, and whoever was overtaken reads them next.

    Returns:
        False if another worker committed this unit with other content.
    """
    kind = "plan" if record.unit == PLAN else "shard"
    files.fsync_directory(folder)
    faults.point(f"{kind}.staged")
    _rename_to_digest(root, folder, record)
    faults.point(f"{kind}.published")
    won = files.create_exclusive(root / record_name(record.unit), record.to_json(), root / STAGING)
    faults.point(f"{kind}.won" if won else f"{kind}.lost")
    if not won and read_record(root, record.unit).digest != record.digest:
        files.remove_tree(root / STAGING / record.digest)
        is_complete(root, record.unit)
        return False
    roll_forward(root, record)
    return True


def check_overtaken(root: Path, unit: str) -> None:
    """Check that staging disappeared because another process finished and sealed the store.

    Raises:
        StoreWriteError: `unit` is not committed, so something else removed staging.
    """
    if not is_committed(root, unit):
        raise StoreWriteError(
            f"{root}: another process removed {STAGING} while this one wrote to it; "
            "run the same command again"
        ) from None


def _rename_to_digest(root: Path, folder: Path, record: CommitRecord) -> None:
    """Rename a complete folder to the record's digest, where any worker finds it."""
    shared = root / STAGING / record.digest
    for attempts_left in reversed(range(RENAME_ATTEMPTS)):
        try:
            files.rename(folder, shared)
            break
        except FileExistsError:
            # Another worker's folder of the same digest holds the same bytes, so either will do.
            # That worker removes its folder when it is done; then ours takes the name.
            if shared.is_dir():
                break
            if not attempts_left:
                raise StoreWriteError(
                    f"cannot write {shared}: another process keeps creating and removing it; "
                    "run the same command again"
                ) from None
    files.fsync_directory(root / STAGING)
    files.fsync_directory(root)


def roll_forward(root: Path, record: CommitRecord) -> None:
    """Move the files that `record` names from staging to their final names.

    Any process may do so at any time.

    Raises:
        CorruptError: a file is missing from staging, and its final file is missing or has a wrong
            size.
    """
    staged = root / STAGING / record.digest
    kind = "plan" if record.unit == PLAN else "shard"
    if not files.is_folder(staged) or files.is_link(root / STAGING):
        for item in record.file_records:
            check_size(root, record.unit, item)
        return
    names = [item.name for item in record.file_records]
    for name in names:
        files.size_inside(root, name)  # refuses a path through links
        files.make_directories((root / name).parent)
    # A folder must be durable before the only copy of a file moves into it.
    files.sync_ancestors(root, names)
    # Sorted by name: store.json, which marks the plan as complete, comes after data.zarr.
    for item in sorted(record.file_records, key=lambda item: item.name):
        faults.point(f"{kind}.moving")
        _move(root, staged, record.unit, item)
    files.sync_ancestors(root, names)
    faults.point(f"{kind}.moved")
    # Staging may be removed only after the moved files are durable.
    files.remove_tree(staged)
    faults.point(f"{kind}.finished")


def _move(root: Path, staged: Path, unit: str, item: FileRecord) -> None:
    source, target = staged / staged_name(item.name), root / item.name
    if files.regular_size(source) != item.size:
        check_size(root, unit, item)
        return
    same_size = files.size_inside(root, item.name) == item.size
    if same_size and f"{files.crc32_inside(root, item.name):08x}" == item.crc32:
        return
    try:
        files.rename(source, target)
    except FileNotFoundError:
        # Another worker moved the file between the two calls.
        check_size(root, unit, item)


def sweep(root: Path) -> None:
    """Remove staging from a sealed store; files still in it came too late."""
    if files.size_inside(root, SEAL) is not None and files.is_folder(root / STAGING):
        files.remove_tree(root / STAGING)
        files.fsync_directory(root)
