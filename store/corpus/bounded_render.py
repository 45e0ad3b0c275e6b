"""Renders chat templates of strangers within bounds of time, memory and length.

transformers renders in Jinja's sandbox, which keeps a template from the system but not from an
endless loop or a text of many gigabytes.
"""

import os
import resource
import signal
import threading
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

from caskd.store.errors import UsageError, reason

MAX_SECONDS = 10.0
"""Processor time of one rendering."""
MAX_BYTES = 1 << 30
"""Memory that one rendering may add."""
MAX_CHARACTERS = 64 << 20
_PAGE = resource.getpagesize()
_VALUES, _ENDS_VALUE = ("name", "integer", "float", "string"), (")", "]", "}")
_CURE = "expected an ordinary chat template: pass another --chat-template FILE"


class TemplateError(Exception):
    """The template rejects its input; the text is the reason."""


class _TooLongError(Exception):
    """A rendering used up its time."""


def render_template(
    tokenizer: Any, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]
) -> str:
    """The rendered messages.

    Args:
        tokenizer: of transformers, which renders.
        messages: the conversation.
        options: arguments of `apply_chat_template`, with the text of the `chat_template`.

    Raises:
        TemplateError: the template rejects the messages, whatever the exception.
        UsageError: the rendering exceeds its bounds.
    """
    _check_operators(options["chat_template"])
    try:
        text = _bounded(tokenizer, [list(messages)], options)
    except _TooLongError:
        raise UsageError(f"the chat template takes more than {MAX_SECONDS:g} s; {_CURE}") from None
    except MemoryError:
        raise UsageError(
            f"the chat template takes more than {MAX_BYTES:,} bytes; {_CURE}"
        ) from None
    except Exception as error:
        raise TemplateError(reason(error)) from error
    if len(text) > MAX_CHARACTERS:
        raise UsageError(f"the chat template writes {len(text):,} characters; {_CURE}")
    return text


def _bounded(tokenizer: Any, conversations: list[Any], options: Mapping[str, Any]) -> str:
    """One rendering, bounded in the main thread alone.

    Signals arrive there; and a limit of the address space is one of the whole process, so that two
    threads which set and restore it would leave each other's.
    """
    if threading.current_thread() is not threading.main_thread():
        return _rendered(tokenizer, conversations, options)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    bound = _address_space() + MAX_BYTES
    timed = _catches_timer()
    if soft == resource.RLIM_INFINITY or soft > bound:
        resource.setrlimit(resource.RLIMIT_AS, (bound, hard))
    if timed:
        signal.setitimer(signal.ITIMER_PROF, MAX_SECONDS)
    try:
        return _rendered(tokenizer, conversations, options)
    finally:
        if timed:
            signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _rendered(tokenizer: Any, conversations: list[Any], options: Mapping[str, Any]) -> str:
    return str(tokenizer.apply_chat_template(conversations, tokenize=False, **options)[0])


def _too_long(_number: int, _frame: object) -> None:
    raise _TooLongError


@lru_cache(maxsize=1)
def _catches_timer() -> bool:
    """Install the timer's handler once; False where its signal belongs to somebody else."""
    if signal.getsignal(signal.SIGPROF) != signal.SIG_DFL:
        return False
    signal.signal(signal.SIGPROF, _too_long)
    return True


def _address_space() -> int:
    """Bytes of address space of this process now; a large number where the system does not tell."""
    handle = _statistics(os.getpid())
    return 1 << 50 if handle is None else int(os.pread(handle, 64, 0).split()[0]) * _PAGE


@lru_cache(maxsize=1)
def _statistics(_process: int) -> int | None:
    """Descriptor of the sizes of this process: opening the file takes as long as a rendering."""
    try:
        return os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None


@lru_cache(maxsize=16)
def _check_operators(template: str) -> None:
    """Refuse the power operator: the time of one such operation has no bound.

    Raises:
        UsageError: the template has one.
    """
    import jinja2

    try:
        tokens = [t for t in jinja2.Environment().lex(template) if t[1] != "whitespace"]
    except (jinja2.TemplateError, RecursionError):
        return  # rendering reports it
    for (_, kind, text), (_, _, after) in pairwise(tokens):
        if after == "**" and (kind in _VALUES or text in _ENDS_VALUE):
            raise UsageError(f"the chat template computes a power (**); {_CURE}")
