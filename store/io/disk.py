"""What to do about a disk that is full, read-only or failing, and checks of it before work."""

import os
import shutil
from errno import EACCES, EDQUOT, EFBIG, ENOSPC, EPERM, EROFS
from pathlib import Path

from caskd.store.errors import UsageError
from caskd.store.io import descriptors

CACHE_VARIABLE = "CASKD_CACHE"

_ADVICE = {
    **dict.fromkeys((ENOSPC, EDQUOT), "free disk space"),
    **dict.fromkeys((EROFS, EACCES, EPERM), "pass a path that this process may write"),
    EFBIG: "raise the limit of file sizes (ulimit -f)",
}


def advice(number: int | None) -> str:
    """What to do about a system error of a write."""
    if number in descriptors.LIMIT_REACHED:
        return descriptors.advice()
    return _ADVICE.get(number or 0, "check the disk")


def cache_folder() -> Path:
    """Where caskd keeps what it can make again: CASKD_CACHE, or ~/.cache/caskd."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get(CACHE_VARIABLE) or Path(home) / "caskd")


def check_room(path: Path, flag: str, num_bytes: int = 0) -> None:
    """Refuse an output whose folder cannot be written or is too full, before any work.

    Args:
        path: where the caller will write; it and its folders may be missing.
        flag: how the user named it.
        num_bytes: that the caller will write at least.

    Raises:
        UsageError: the nearest existing folder is read-only, or has less room.
    """
    folder = path if path.is_dir() else path.parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(
            f"{flag} {path}: {folder} cannot be written; expected a folder that this process may "
            f"write; pass another {flag}"
        )
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise UsageError(
            f"{flag} {path}: {folder} has {free:,} free bytes; expected at least {num_bytes:,}; "
            f"free disk space, or pass another {flag}"
        )
