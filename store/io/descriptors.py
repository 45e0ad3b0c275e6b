"""The limit of open files: how many this process may have, and the error when it has them all."""

import errno
import resource

LIMIT_REACHED = (errno.EMFILE, errno.ENFILE)


def limit() -> int:
    """Number of files that this process may have open (`ulimit -n`)."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1 << 30 if soft == resource.RLIM_INFINITY else soft


def share(largest: int, fraction: int) -> int:
    """At most `largest`, and at most one of `fraction` parts of the limit; at least 1."""
    return max(1, min(largest, limit() // fraction))


def advice() -> str:
    """What to do about it: names the limit and the command."""
    return f"raise the limit of open files, here {limit():,} (ulimit -n {max(4096, 2 * limit())})"
