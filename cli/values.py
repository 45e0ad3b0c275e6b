"""The options of a subcommand: every mistake in one line, before and after tyro parses them."""

import contextlib
import dataclasses
import io
import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import tyro

from caskd.cli.arguments import flag_of, is_sequence, merge_repeated, multi_value_flags
from caskd.store.errors import CaskdError, UsageError

HELP_WORDS = ("-h", "--help")


def parse_config(config_class: type, args: Sequence[str], prog: str, description: str) -> Any:
    """The config that a command line gives.

    Args:
        config_class: the subcommand's dataclass.
        args: the words after the subcommand.
        prog: the words up to it, such as `caskd train`.
        description: first line of its help.

    Raises:
        UsageError: one line about the flag, its value and what is expected.
    """
    merged = merge_repeated(args, multi_value_flags(config_class))
    check_words(config_class, merged, prog)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(config_class, args=merged, prog=prog, description=description)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise _error_behind(stop) or UsageError(_unboxed(said.getvalue(), prog)) from None


def _error_behind(stop: SystemExit) -> CaskdError | None:
    """A config's own error, which tyro turned into an exit."""
    found: BaseException | None = stop
    while found is not None and not isinstance(found, CaskdError):
        found = found.__context__
    return found


def _unboxed(box: str, prog: str) -> str:
    """The text of a message that tyro drew a box around, on one line."""
    text = re.sub(r"[╭╮╰╯│]|─{2,}[^\n]*", " ", box.split("────", 2)[1] if "╭" not in box else box)
    return f"{' '.join(text.split())}; run {prog} --help"


def check_words(config_class: type, words: Sequence[str], prog: str) -> None:
    """Check flags, number of values and the form of each value, and that nothing is missing."""
    given, free, _ = read_words(config_class, words, prog)
    fields = {field.name: field for field in dataclasses.fields(config_class)}
    _check_complete(fields, positionals_of(config_class), given, free, prog)


def positionals_of(config_class: type) -> list[str]:
    """Fields that are words without a flag, in their order."""
    hints = get_type_hints(config_class, include_extras=True)
    return [name for name, hint in hints.items() if tyro.conf.Positional in markers_of(hint)]


def read_words(
    config_class: type, words: Sequence[str], prog: str
) -> tuple[set[str], list[str], list[str]]:
    """Check flags, number of values and the form of each value.

    Returns:
        the fields that were given by a flag, the words without a flag, and all other words.

    Raises:
        UsageError: one line about the flag, its value and what is expected.
    """
    plain = get_type_hints(config_class)
    positionals = positionals_of(config_class)
    flags = {flag_of(name): name for name in plain if name not in positionals}
    given: set[str] = set()
    rest = list(words)
    free: list[str] = []
    flagged: list[str] = []
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            if re.match(r"-[^\d.]", word):  # tyro takes it for a flag, and misses a positional
                raise UsageError(_unknown_flag(word, flags, prog))
            free.append(word)
            continue
        flag, equals, value = word.partition("=")
        flag = flag_of(flag)
        name = flags.get(flag) or flags.get("--" + flag.removeprefix("--no-"))
        if name is None or (flag not in flags and plain[name] is not bool):
            raise UsageError(_unknown_flag(flag, flags, prog))
        given.add(name)
        flagged.append(word)
        if plain[name] is bool:
            continue
        most = len(rest) if is_sequence(plain[name]) else 1
        values = [value] if equals else list(_values(rest, most))
        flagged += [] if equals else values
        for one in values:
            _check_value(flag, one, plain[name])
        if not values and not is_sequence(plain[name]):
            raise UsageError(f"{flag}: has no value; expected {form_of(plain[name])}; add one")
    return given, free, flagged


def markers_of(hint: Any) -> tuple[Any, ...]:
    """What tyro is told about a field beside its type."""
    return getattr(hint, "__metadata__", ())


def _values(rest: list[str], most: int) -> Iterator[str]:
    while rest and most and not rest[0].startswith("--"):
        most -= 1
        yield rest.pop(0)


def _check_complete(
    fields: dict[str, Any], positionals: list[str], given: set[str], free: list[str], prog: str
) -> None:
    """Refuse words too many, and missing flags or words."""
    if len(free) > len(positionals):
        raise UsageError(
            f"{free[len(positionals)]!r}: belongs to no flag; expected "
            f"{' '.join(map(str.upper, positionals)) or 'flags only'}; run {prog} --help"
        )
    given |= set(positionals[: len(free)])
    missing = [
        name.upper() if name in positionals else flag_of(name)
        for name, field in fields.items()
        if name not in given
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise UsageError(
            f"{' and '.join(missing)}: missing; expected by {prog}; add a value for each, or run "
            f"{prog} --help"
        )


def _unknown_flag(flag: str, flags: dict[str, str], prog: str) -> str:
    close = get_close_matches(flag, flags, n=1, cutoff=0.6)
    hint = f"pass {close[0]}, or " if close else ""
    return f"{flag}: no such flag of {prog}; {hint}run {prog} --help for the list"


def _check_value(flag: str, text: str, hint: Any) -> None:
    """Refuse a value that is not of the field's type."""
    kinds = kinds_of(hint)
    if not any(_is_of(text, kind) for kind in kinds):
        raise UsageError(f"{flag} {text}: expected {form_of(hint)}; pass one of that form")


def kinds_of(hint: Any) -> list[Any]:
    """The simple types of a field: of `int | None` and of `tuple[int, ...]` int."""
    if get_origin(hint) in (Union, UnionType, tuple, list):
        return [kind for part in get_args(hint) if part is not Ellipsis for kind in kinds_of(part)]
    return [hint]


def _is_of(text: str, kind: Any) -> bool:
    if kind is NoneType:
        return text == "None"
    if get_origin(kind) is Literal:
        return text in map(str, get_args(kind))
    if kind in (int, float):
        try:
            kind(text)
        except ValueError:
            return False
    return True


def form_of(hint: Any) -> str:
    """How to say what values a field takes."""
    names = {int: "a whole number", float: "a number", str: "a text", Path: "a path"}
    forms = [
        f"one of {', '.join(map(str, get_args(kind)))}"
        if get_origin(kind) is Literal
        else names.get(kind, "a value")
        for kind in kinds_of(hint)
        if kind is not NoneType
    ]
    return " or ".join(forms)
