"""What to do about a disk that is full, read-only or failing, and checks of it before work."""

import os
import re
import shutil
from errno import EACCES, EDQUOT, EFBIG, EIO, EMFILE, ENFILE, ENOSPC, EPERM, EROFS
from pathlib import Path

from caskd.store.errors import CaskdError, UsageError

_ADVICE = {
    **dict.fromkeys((ENOSPC, EDQUOT), "free disk space"),
    **dict.fromkeys((EROFS, EACCES, EPERM), "pass a path that this process may write"),
    **dict.fromkeys((EMFILE, ENFILE), "raise the limit of open files (ulimit -n)"),
    EFBIG: "raise the limit of file sizes (ulimit -f)",
    EIO: "check the disk",
}
_OS_ERROR = re.compile(r"\(os error (\d+)\)")


def advice(number: int | None) -> str:
    """What to do about a system error of a write."""
    return _ADVICE.get(number or 0, "check the disk")


def disk_error(error: Exception) -> CaskdError | None:
    """The error of one line for a failure of the disk; None for any other exception.

    Libraries in Rust, such as safetensors, report the number of a system error in their text.
    """
    name, number = None, None
    if isinstance(error, OSError):
        name, number = error.filename, error.errno
    elif found := _OS_ERROR.search(str(error)):
        number = int(found.group(1))
    if number not in _ADVICE:
        return None
    subject = "an output file" if name is None else os.fsdecode(name)
    return CaskdError(
        f"{subject}: {os.strerror(number)}; expected room and permission to write there; "
        f"{advice(number)}, then run the same command again"
    )


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
