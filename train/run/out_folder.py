"""The folder of a run: who may write it, what it may hold, and what a resumed run does with it.

`last-save.json` records the newest checkpoint that was completed. Without it, a checkpoint that
lost its COMPLETE record would look like a save that was interrupted.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from caskd.store.errors import CorruptError, IdentityError, UsageError
from caskd.store.io import check_readable, claimed, files, read_json_object, refuse_occupied
from caskd.train.checkpoint import (
    CHECKPOINTS,
    STATE,
    RunState,
    check_resumable,
    check_same_options,
    checkpoint_path,
    newest_complete,
    read_state,
    unfinished_saves,
    verify,
)
from caskd.train.metrics import METRICS_FILE
from caskd.train.run.validation import EVAL_FILE

RUN_CONFIG = "config.json"
LAST_SAVE = "last-save.json"


@contextmanager
def held_by_first_rank(out: Path, *, resume: bool) -> Iterator[None]:
    """Hold --out on rank 0 until the block ends, so that no other run writes to it.

    Raises:
        UsageError: another process holds it, it is a file, or there is nothing to resume.
    """
    _check_not_a_file(out)
    if resume and not out.exists():
        raise UsageError(
            f"--resume: --out {out} does not exist, expected the directory of a run; check the "
            "path, or run without --resume"
        )
    with ExitStack() as stack:
        if is_first_rank():
            stack.enter_context(claimed(out, "--out"))
        yield


def _check_not_a_file(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out}: found a file, expected a directory; pass another --out")


def is_first_rank() -> bool:
    """Whether this process is rank 0, before the ranks are connected."""
    return os.environ.get("RANK", "0") == "0"


def check_unused(out: Path) -> None:
    """Refuse an --out that is a file, or contains a run or a model.

    Raises:
        UsageError: it is a file, or it contains a run or another program's config.json.
    """
    _check_not_a_file(out)
    refuse_occupied(out, f"--out {out}", reused="run")
    for name in (METRICS_FILE, CHECKPOINTS):
        if (out / name).exists():
            raise UsageError(
                f"--out {out}: already contains a run ({name}); pass --resume to continue it, "
                "or another --out"
            )
    if (out / RUN_CONFIG).exists() and recorded_run(out) is None:
        raise UsageError(
            f"--out {out}: its {RUN_CONFIG} is not that of a run, and would be overwritten; "
            "expected a new directory: pass another --out"
        )


def recorded_run(out: Path) -> dict[str, Any] | None:
    """The content of a run's config.json; None if it is missing or of something else."""
    try:
        content = read_json_object(out / RUN_CONFIG, constants=True)
        is_run = {"config", "deepspeed", "stores"} <= content.keys()
    except (OSError, ValueError, AttributeError) as error:
        check_readable(error, f"--out {out / RUN_CONFIG}")
        return None
    return content if is_run else None


def checkpoint_to_resume(out: Path) -> Path | None:
    """The checkpoint from which --resume continues; None if the run must start anew.

    A run starts anew only if its configuration is there and no checkpoint was ever completed.

    Raises:
        UsageError: there is no run.
        CorruptError: a checkpoint was completed, and none is complete any more.
    """
    try:
        return newest_complete(out)
    except UsageError:
        last = _last_save(out)
        if last is not None:
            raise CorruptError(
                f"{checkpoint_path(out, last)}: was completed, but it or its COMPLETE record is "
                "missing, and no other checkpoint is complete",
                cure="restore it, or train again with a new --out",
            ) from None
        if recorded_run(out) is None:
            raise
        return None


def check_starts_anew(out: Path, options: Mapping[str, Any], stores: list[Any]) -> None:
    """Refuse to start a run anew with other options or stores than it was started with.

    Raises:
        IdentityError: an option that would change the result, or a store, differs.
    """
    run = recorded_run(out) or {}
    check_same_options(run["config"], options)
    if run["stores"] != stores:
        raise IdentityError(
            f"--store: {_seals(stores)} differs from {_seals(run['stores'])}, with which the run "
            f"in {out} was started; pass the same stores with the same weights, or another --out"
        )


def _seals(stores: Any) -> str:
    if not isinstance(stores, list):
        return "no list of stores"
    return ", ".join(str(dict(store).get("seal"))[:12] for store in stores)


def resumed(
    out: Path, options: dict[str, Any], stores: list[Any], store_digest: str
) -> tuple[Path | None, RunState | None]:
    """The checkpoint to resume from and its position; None twice if the run starts anew."""
    checkpoint = checkpoint_to_resume(out)
    if checkpoint is None:
        check_starts_anew(out, options, stores)
        unfinished_saves(out, 0)
        return None, None
    verify(checkpoint, only=(STATE,))
    done = read_state(checkpoint)
    check_resumable(done, config=options, store_digest=store_digest)
    if is_first_rank():  # the other ranks wait for this one
        verify(checkpoint)
    unfinished_saves(out, done.step)
    return checkpoint, done


def clear_for_resume(out: Path, first_step: int, *, anew: bool) -> str | None:
    """Remove saves that were interrupted, and move the logs aside where the run starts anew.

    Returns:
        what to tell the user, where the run starts anew.
    """
    for path in unfinished_saves(out, first_step):
        shutil.rmtree(path)
    if not anew:
        return None
    kept = [moved for name in (METRICS_FILE, EVAL_FILE) if (moved := _move_aside(out / name))]
    kept_text = f"; the earlier logs are kept as {' and '.join(kept)}" if kept else ""
    return f"resume       no checkpoint was completed in {out}: starts anew from step 0{kept_text}"


def _move_aside(path: Path) -> str | None:
    """Rename a file to the first free name of FILE.1, FILE.2, ...; returns that name."""
    if not path.exists():
        return None
    number = 1
    while path.with_name(f"{path.name}.{number}").exists():
        number += 1
    return path.rename(path.with_name(f"{path.name}.{number}")).name


def record_save(out: Path, step: int) -> None:
    """Record that the checkpoint after `step` steps is complete."""
    files.replace_file(out / LAST_SAVE, json.dumps({"step": step}).encode())


def _last_save(out: Path) -> int | None:
    try:
        return int(read_json_object(out / LAST_SAVE)["step"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        check_readable(error, str(out / LAST_SAVE))
        raise CorruptError(
            f"{out / LAST_SAVE}: cannot be read as the record of the newest checkpoint",
            cure=f"remove it if {CHECKPOINTS}/ holds a complete checkpoint",
        ) from None
