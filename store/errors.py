"""Errors for users, in one small tree.

Each message is one line: what was given, what was expected, what to run or change. `exit_code` is
the exit code of the command: 1 a check failed, 2 usage, 3 an identity mismatch.
"""

from collections.abc import Collection
from dataclasses import fields
from typing import Any


class CaskdError(Exception):
    """Base of all errors that a user can fix; printed as one line without traceback."""

    exit_code = 2
    next_step = ""
    """What to do about an error of this kind that has no `cure` of its own."""

    def __init__(self, message: object = "", *, cure: str = "") -> None:
        """Append to the message `cure`: what to do about this very error."""
        self.cure = cure
        super().__init__(f"{message}; {cure}" if cure else message)


class UsageError(CaskdError, ValueError):
    """An argument, a file or a value is invalid."""


class TeacherError(CaskdError):
    """The teacher's outputs cannot be stored, such as NaN or Inf in too many examples."""

    exit_code = 1


class LostTeacherError(CaskdError):
    """A process that runs the teacher ended; committed shards are kept."""

    exit_code = 1


class StoppedError(CaskdError):
    """A signal stopped the command; finished work is kept, and the same command resumes."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + number  # as shells report a signal


class StoreError(CaskdError):
    """Base of all errors of a store."""


class StoreNotFoundError(StoreError, FileNotFoundError):
    """The location holds no store."""


class IncompleteError(StoreError):
    """The store is not sealed, or a shard is not committed yet."""


class FailedShardsError(StoreError):
    """Some shards failed to compute; all others are committed."""

    exit_code = 1


class CorruptError(StoreError):
    """Bytes are missing or differ from the commit records."""

    exit_code = 1
    next_step = (
        "run caskd store verify STORE to list all damage; caskd store repair STORE removes it for "
        "caskd precompute to redo, and caskd store pull copies a sealed store again"
    )


class UnreadableError(StoreError):
    """A file exists but cannot be read now, so whether it is damaged is unknown.

    Permissions, a limit of the process, the disk or the network are the causes.
    """

    exit_code = 1


class StoreWriteError(StoreError):
    """A write failed: the disk is full, read-only or failing."""


class UnsafeError(StoreError):
    """caskd refuses to read the store (unknown version, codec or file type)."""

    next_step = (
        "expected a store as caskd wrote it; copy it again from where it was captured, or install "
        "the newest caskd"
    )


class NotRegularError(UnsafeError, UnreadableError):
    """A link, pipe, device or folder stands where a file should; its content was never read."""

    exit_code = StoreError.exit_code


class IdentityError(StoreError):
    """Two identities differ; the message has the field, both values and the next command."""

    exit_code = 3


def error_line(error: CaskdError) -> str:
    """The message on one line, with the next step of its kind where it has no cure."""
    text = str(error)
    if not error.next_step or error.cure:
        return text
    return f"{text.rstrip('.')}; {error.next_step}"


def given_without(given: str, lacking: str) -> str:
    """The message of an option, with its value, that needs another one beside it."""
    flag = given.partition(" ")[0]
    return (
        f"{given}: was given without {lacking}; expected both or neither; add {lacking}, or omit "
        f"{flag}"
    )


def unread_flags(config: Any, read: Collection[str]) -> dict[str, Any]:
    """Flag -> value of the fields of a config that were given, and that a command does not read."""
    return {
        f"--{field.name.replace('_', '-')}": getattr(config, field.name)
        for field in fields(config)
        if field.name not in read and getattr(config, field.name) != field.default
    }


def reason(error: BaseException, limit: int = 200) -> str:
    """The text of a library's error on one line, at most `limit` characters; else its type."""
    return " ".join(str(error).split())[:limit] or type(error).__name__
