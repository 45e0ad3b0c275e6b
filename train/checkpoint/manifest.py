"""Complete checkpoints: the COMPLETE record, written last, holds every file's size and digest.

A directory without the record is an unfinished save; caskd never reads it.
"""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Collection, Iterable
from pathlib import Path

from caskd.store.errors import CorruptError, UnsafeError, UsageError
from caskd.store.io import files, read_json_object, refuse_mixup, tell
from caskd.train.checkpoint.tensor_files import REMEDY

COMPLETE = "COMPLETE"
CHECKPOINTS = "checkpoints"
STATE = "state.json"
WEIGHTS, OPTIMIZER, STUDENT, RNG = "weights", "optimizer", "student", "rng"
_PARTS = frozenset({WEIGHTS, OPTIMIZER, STUDENT, RNG, STATE})
_PREFIX = "step-"


def checkpoint_path(run: Path, step: int) -> Path:
    """Directory of the checkpoint after `step` steps of a run."""
    return run / CHECKPOINTS / f"{_PREFIX}{step:08d}"


def is_complete(checkpoint: Path) -> bool:
    """Whether the checkpoint has its COMPLETE record."""
    return (checkpoint / COMPLETE).is_file()


def complete(checkpoint: Path) -> None:
    """Make every file of a checkpoint durable, then write its COMPLETE record atomically."""
    directories = {checkpoint.parent, checkpoint}
    record = {}
    for path in _files(checkpoint):
        record[path.relative_to(checkpoint).as_posix()] = {
            "size": path.stat().st_size,
            "sha256": _sha256(path, sync=True),
        }
        directories.add(path.parent)
    for directory in directories:
        files.fsync_directory(directory)
    files.replace_file(checkpoint / COMPLETE, json.dumps({"files": record}, indent=1).encode())


def verify(checkpoint: Path, only: Iterable[str] = ("",)) -> None:
    """Compare the files of a complete checkpoint with its record.

    Args:
        checkpoint: a directory with a COMPLETE record.
        only: prefixes of the relative names to check; by default all files are checked.

    Raises:
        CorruptError: a file is missing, extra, or differs from the record.
    """
    try:
        record = read_json_object(checkpoint / COMPLETE)["files"]
        expected = {name: (int(f["size"]), str(f["sha256"])) for name, f in record.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise CorruptError(f"{checkpoint}: its COMPLETE record is damaged", cure=REMEDY) from None
    found = {path.relative_to(checkpoint).as_posix(): path for path in _files(checkpoint)}
    prefixes = tuple(only)
    for name in sorted({*expected, *found}):
        if not name.startswith(prefixes):
            continue
        if name not in found or name not in expected:
            problem = "missing" if name in expected else "not part of the checkpoint"
            raise CorruptError(f"{checkpoint}: {name} is {problem}", cure=REMEDY)
        size, digest = expected[name]
        if found[name].stat().st_size != size or _sha256(found[name]) != digest:
            raise CorruptError(
                f"{checkpoint}: {name} differs from the bytes that were saved",
                cure=REMEDY,
            )


def prune(run: Path, keep: int, protected: Collection[int]) -> None:
    """Remove all complete checkpoints but the newest `keep` and those of the protected steps."""
    found = sorted(path for path in (run / CHECKPOINTS).glob(f"{_PREFIX}*") if is_complete(path))
    for checkpoint in found[:-keep]:
        if step_of(checkpoint) not in protected:
            (checkpoint / COMPLETE).unlink()  # first: half a checkpoint must not look complete
            shutil.rmtree(checkpoint)


def unfinished_saves(run: Path, after: int) -> list[Path]:
    """Directories of saves later than step `after` that were interrupted.

    Raises:
        UsageError: one holds something else than parts of a checkpoint.
    """
    found = [path for path in (run / CHECKPOINTS).glob(f"{_PREFIX}*") if not is_complete(path)]
    later = [path for path in found if step_of(path) > after]
    for checkpoint in later:
        for part in checkpoint.iterdir() if checkpoint.is_dir() else [checkpoint]:
            is_draft = part.name.startswith(f".{COMPLETE}.")
            if part.name not in _PARTS and not is_draft:
                raise UsageError(
                    f"{checkpoint}: holds {part.name}, expected only what an interrupted save "
                    "leaves; move the directory elsewhere, then run the same command again"
                )
    return later


def step_of(checkpoint: Path) -> int:
    """The step in a checkpoint's name; -1 if it has none."""
    digits = checkpoint.name.removeprefix(_PREFIX)
    return int(digits) if digits.isdecimal() else -1


def newest_complete(run: Path) -> Path:
    """The newest complete checkpoint of a run; it skips incomplete ones and names them on stderr.

    Raises:
        UsageError: the run has no complete checkpoint.
    """
    for checkpoint in sorted((run / CHECKPOINTS).glob(f"{_PREFIX}*"), reverse=True):
        if is_complete(checkpoint):
            return checkpoint
        message = f"caskd: {checkpoint} is not complete (its save was interrupted); skipped"
        if os.environ.get("RANK", "0") == "0":
            tell(message, file=sys.stderr)
    raise UsageError(
        f"{run}: no complete checkpoint in {CHECKPOINTS}/; expected at least one; check the "
        "path, or run without --resume and with a new --out"
    )


def find_checkpoint(path: Path) -> Path:
    """The checkpoint at `path`, or the newest complete checkpoint of the run at `path`.

    Raises:
        UsageError: `path` is neither a complete checkpoint nor a run with one.
    """
    if is_complete(path):
        return path
    if (path / CHECKPOINTS).is_dir():
        return newest_complete(path)
    if not path.name.startswith(_PREFIX):
        refuse_mixup(path, str(path), "run")
    found = "no such directory"
    if path.is_dir():
        found = "an unfinished checkpoint" if path.name.startswith(_PREFIX) else "neither"
    raise UsageError(
        f"{path}: found {found}; expected a run's directory or a complete checkpoint; "
        f"pass RUN or RUN/{CHECKPOINTS}/{_PREFIX}N"
    )


def _files(checkpoint: Path) -> list[Path]:
    """The files of a checkpoint, which are copied and hashed: none of them may lie elsewhere.

    Raises:
        UnsafeError: a link that leaves the checkpoint, a pipe or a device.
    """
    root, found = checkpoint.resolve(), []
    for path in sorted(checkpoint.rglob("*")):
        outside = path.is_symlink() and not path.resolve().is_relative_to(root)
        if outside or not (path.is_file() or path.is_dir()):
            raise UnsafeError(
                f"{checkpoint}: {path.relative_to(checkpoint)} is a link out of the checkpoint, "
                "a pipe or a device; expected regular files",
                cure="put the file there in its place",
            )
        if path.is_file() and path.name != COMPLETE:
            found.append(path)
    return found


def _sha256(path: Path, *, sync: bool = False) -> str:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if sync:
            os.fsync(file.fileno())
    return digest
