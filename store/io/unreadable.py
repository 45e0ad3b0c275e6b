"""Failures of the system to read or write a file: permissions, limits, the disk, never damage."""

import errno
import os
import re
from collections.abc import Iterator

from caskd.store.errors import StoreError, StoreWriteError, UnreadableError
from caskd.store.io import descriptors
from caskd.store.io.disk import advice

PERMISSION = (errno.EACCES, errno.EPERM)
_CAUSES = (
    *PERMISSION,
    *descriptors.LIMIT_REACHED,
    *(errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOMEM, errno.EAGAIN),
    *(errno.ENOTCONN, errno.EHOSTDOWN, errno.EREMOTEIO, errno.ENXIO, errno.ENODEV),
)


_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_OS_ERROR = re.compile(r"\(os error (\d+)\)")


def system_failure(error: BaseException) -> StoreError | None:
    """The error to show for an exception that no other code expected; None if it may be our bug.

    Libraries in Rust, such as safetensors, report the number of a system error in their text.
    """
    if not isinstance(error, OSError):
        found = _OS_ERROR.search(str(error))
        if found is None:
            return None
        error = OSError(int(found[1]), os.strerror(int(found[1])))
    name = str(error.filename or "a file of this command")
    if error.errno in _NO_ROOM:
        return StoreWriteError(
            f"{name}: cannot be written ({error.strerror}); expected room and permission to write "
            f"there; {advice(error.errno)}, or choose another place, then run the command again"
        )
    if error.errno in _CAUSES and error.filename is None:
        return UnreadableError(
            f"{name} cannot be read or written ({error.strerror}), which is not damage; "
            f"{advice(error.errno)}, then run the same command again"
        )
    return unreadable(error, name) if error.errno in _CAUSES else None


def check_readable(error: BaseException, name: str) -> None:
    """Raise the error of `unreadable` if `error`, or one behind it, is a failure of the system.

    Call it before content is called damaged or missing because a library raised `error`.

    Raises:
        UnreadableError: the system, not the content of `name`, is the cause.
    """
    for cause in _chain(error):
        if isinstance(cause, UnreadableError):
            raise cause
        if isinstance(cause, OSError) and cause.errno in _CAUSES:
            raise unreadable(cause, name) from None


def unreadable(error: OSError, name: str) -> UnreadableError:
    """The error of a file that exists but cannot be read, with cause and advice."""
    if error.errno in PERMISSION:
        cure = "get permission to read it"
    elif error.errno in descriptors.LIMIT_REACHED:
        cure = descriptors.advice()
    else:
        cure = "check the disk and its connection"
    return UnreadableError(
        f"{name}: unreadable ({error.strerror or type(error).__name__}), which is not damage; "
        f"expected a file that this process can read; {cure}, then run the same command again"
    )


def is_limit_reached(error: BaseException) -> bool:
    """Whether an error, or one behind it, is that this process has too many files open."""
    return any(
        isinstance(cause, OSError) and cause.errno in descriptors.LIMIT_REACHED
        for cause in _chain(error)
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, its cause, the cause's cause and so on."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        yield error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
