"""An exclusive claim of an output folder, held while a process lives.

Two commands that write one folder would mix their files. An advisory lock on `.claim` decides, and
the system releases it when the process ends, even after a crash; an unlocked claim file is stale.
"""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from caskd.store.errors import UsageError

CLAIM = ".claim"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
_HELD = (errno.EACCES, errno.EAGAIN)


@contextmanager
def claimed(folder: Path, flag: str) -> Iterator[None]:
    """Hold `folder`, which is made if it is missing, until the block ends.

    On a file system without locks the existence of the claim decides. It then outlives a process
    that was killed, and the error names the file to remove.

    Args:
        folder: where the caller is about to write.
        flag: how the user named the folder, such as `--out`.

    Raises:
        UsageError: another process holds the folder, or it cannot be written.
    """
    is_new = not folder.exists()
    path = folder / CLAIM
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = _lock(path, flag)
    except OSError as error:
        raise UsageError(
            f"{flag} {folder} cannot be written ({os.strerror(error.errno or 0)}); "
            f"expected a folder that this process may write: pass another {flag}"
        ) from error
    try:
        yield
    finally:
        # Removed while still locked: whoever waits for the old file sees that it is gone.
        with suppress(OSError):
            path.unlink()
        os.close(handle)
        if is_new:
            with suppress(OSError):  # not empty: something was written
                folder.rmdir()


def _lock(path: Path, flag: str) -> int:
    """The open claim, locked, or created by this process where the file system has no locks."""
    while True:
        handle, created = _open(path)
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _NO_LOCKS and created:
                return handle
            os.close(handle)
            if error.errno in _HELD:
                raise UsageError(
                    f"{flag} {path.parent} is in use by another caskd process; expected a folder "
                    f"of this command's own: wait for that process, or pass another {flag}"
                ) from None
            if error.errno not in _NO_LOCKS:
                raise
            raise UsageError(
                f"{flag} {path.parent} has the claim of another caskd process, and this file "
                "system has no locks to tell whether that process lives; expected no claim: "
                f"remove {path} if no other process writes there, or pass another {flag}"
            ) from None
        if _is_at(handle, path):
            return handle
        os.close(handle)  # its holder removed it in between


def _open(path: Path) -> tuple[int, bool]:
    """The claim's file, and whether this process created it."""
    while True:
        try:
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666), True
        except FileExistsError:
            with suppress(FileNotFoundError):  # removed in between
                return os.open(path, os.O_RDWR | os.O_NOFOLLOW), False


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False
