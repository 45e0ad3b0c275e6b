"""Errors that a user can meet, in one small tree.

Each message is one line: what was got, what was expected, what to do next. `exit_code` is what the
command line returns: 1 a check failed, 2 usage, 3 an identity mismatch.
"""


class CaskdError(Exception):
    """Base of every error that is the user's to fix: one line, no traceback."""

    exit_code = 2


class UsageError(CaskdError, ValueError):
    """An argument, a file or a value is not what was expected."""


class TeacherError(CaskdError):
    """The teacher answers, but not with what can be kept."""

    exit_code = 1


class StoppedError(CaskdError):
    """A signal ended the work; what was finished is kept, and the same command goes on."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + number  # as shells report a signal


class StoreError(CaskdError):
    """Base of everything that can be wrong with a store."""


class StoreNotFoundError(StoreError, FileNotFoundError):
    """There is no store at this place."""


class IncompleteError(StoreError):
    """The store is not sealed, or a shard is not committed yet."""


class FailedShardsError(StoreError):
    """Some shards could not be computed; all others are committed."""

    exit_code = 1


class CorruptError(StoreError):
    """Bytes are missing or differ from what the commit records say."""

    exit_code = 1


class StoreWriteError(StoreError):
    """The disk did not take what was to be written: it is full, read-only or failing."""


class UnsafeError(StoreError):
    """The store holds something that caskd refuses to read (unknown version, codec, file type)."""


class IdentityError(StoreError):
    """Two identities that must agree do not: the field, both values, and the next command."""

    exit_code = 3


def reason(error: BaseException, limit: int = 200) -> str:
    """A library's error on one line, cut to `limit` characters; its type if it has no text."""
    return " ".join(str(error).split())[:limit] or type(error).__name__
