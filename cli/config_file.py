"""`--config FILE`: a TOML file with one table per command, whose keys are the command's flags.

`[train]` holds values of `caskd train`, `[store.info]` those of `caskd store info`. Flags win over
the file. The values become words of the command line, so that the checks of flags are theirs too.
"""

import dataclasses
import re
import tomllib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from caskd.cli.arguments import flag_of, is_sequence, merge_repeated, multi_value_flags
from caskd.cli.values import form_of, kinds_of, positionals_of, read_words
from caskd.store.errors import UsageError
from caskd.store.io import StrangeFileError, depth_exceeds, read_regular

FLAG = "--config"
HELP = "TOML file with one table per command, such as [train]; its keys are flags, and flags win."
_MAX_BYTES = 1 << 20
_MAX_DEPTH = 32
# tomllib takes time and memory with the square of a dotted key's parts.
_DEEP_KEY = re.compile(r"""(?<![\w-])(?:(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+){32}""")
_FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
_MAX_KEY, _MAX_VALUE = 100, 60


@dataclasses.dataclass(frozen=True)
class Origin:
    """Values of a command line that came from a config file.

    Attributes:
        where: the file and its table, for messages.
        flags: flags whose values these are.
    """

    where: str = ""
    flags: frozenset[str] = frozenset()


def take_config(words: Sequence[str]) -> tuple[list[str], Path | None]:
    """The words without `--config FILE`, and that file.

    Raises:
        UsageError: the flag has no value.
    """
    rest: list[str] = []
    path: str | None = None
    waiting = False
    for word in words:
        if waiting:
            path, waiting = word, False
        elif word == FLAG:
            waiting = True
        elif word.startswith(f"{FLAG}="):
            path = word.partition("=")[2]
        else:
            rest.append(word)
    if waiting or path == "" or (path or "").startswith("--"):
        raise UsageError(f"{FLAG}: has no value; expected a path; add one")
    return rest, None if path is None else Path(path)


def with_file(
    path: Path | None,
    words: Sequence[str],
    name: str,
    config_class: type,
    commands: Collection[str],
) -> tuple[list[str], Origin]:
    """The words of a command line and, where it gives no value, those of a config file.

    Args:
        path: of the file, if there is one.
        words: after the command, without `--config`.
        name: of the command, such as `store info`.
        config_class: its config.
        commands: names of all commands, which are the tables that a file may have.

    Raises:
        UsageError: a word is wrong, or the file: one line with its table, key and value.
    """
    if path is None:
        return list(words), Origin()
    where = f"{path} [{name.replace(' ', '.')}]"
    values = _values(_table(path, name, commands), where, name, config_class)
    merged = merge_repeated(words, multi_value_flags(config_class))
    given, free, flagged = read_words(config_class, merged, f"caskd {name}")
    hints, positionals = get_type_hints(config_class), positionals_of(config_class)
    for field in positionals[len(free) :]:
        if field not in values:
            break
        free.append(values[field][0])
    used = [field for field in values if field not in given and field not in positionals]
    for field in used:
        flagged += _flag_words(flag_of(field), values[field], hints[field])
    return [*free, *flagged], Origin(where, frozenset(map(flag_of, used)))


@contextmanager
def blamed(origin: Origin) -> Iterator[None]:
    """Name the config file in the message of an error that names a flag whose value it gave."""
    try:
        yield
    except UsageError as error:
        if origin.flags & set(_FLAG.findall(str(error))):
            raise UsageError(f"{origin.where}: {error}") from None
        raise


def _table(path: Path, name: str, commands: Collection[str]) -> Mapping[str, Any]:
    """The table of a command; empty if the file has none."""
    content: Any = _read(path)
    _check_tables(path, content, commands)
    for part in name.split():
        content = content.get(part, {})
    return content  # type: ignore[no-any-return]


def _values(
    table: Mapping[str, Any], where: str, name: str, config_class: type
) -> dict[str, list[str]]:
    """The values of a table by field, each as the words that its flag would have."""
    fields = {flag_of(field.name): field.name for field in dataclasses.fields(config_class)}
    hints = get_type_hints(config_class)
    values: dict[str, list[str]] = {}
    for key, value in table.items():
        line = f"{where} {_cut(key, _MAX_KEY)} = {_toml(value)}"
        field = fields.get(flag_of(key))
        if field is None:
            near = _nearest(key, [flag[2:] for flag in fields])
            raise UsageError(f"{line}: no such key; {near}run caskd {name} --help for the list")
        if field in values:
            raise UsageError(f"{line}: is set twice; expected one line; remove the other")
        texts = _texts(value, hints[field])
        if texts is None:
            raise UsageError(f"{line}: expected {_form(hints[field])}; write a value of that form")
        if field in positionals_of(config_class) and texts[0].startswith("-"):
            raise UsageError(f"{line}: looks like a flag; expected a path; write ./ before it")
        values[field] = texts
    return values


def _read(path: Path) -> dict[str, Any]:
    try:
        text = read_regular(path, _MAX_BYTES).decode("utf-8-sig")
        content = None if _DEEP_KEY.search(text) else tomllib.loads(text)
        if content is None or depth_exceeds(content, _MAX_DEPTH):
            raise ValueError(f"nested deeper than {_MAX_DEPTH} levels")
        str(content)  # Python writes no integer of more than 4,300 digits: a ValueError
        return content
    except (OSError, StrangeFileError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(
            f"{FLAG} {path}: {reason}; expected a TOML file; caskd init DIR writes one"
        ) from None
    except (ValueError, RecursionError) as error:  # also of the decoding
        raise UsageError(
            f"{FLAG} {path}: not valid TOML ({error}); expected tables such as [train] with lines "
            "such as lr = 2e-5; correct that line"
        ) from None


def _check_tables(path: Path, content: Mapping[str, Any], commands: Collection[str]) -> None:
    """Refuse a table that is of no command, and a value outside of a table."""
    names = {name.replace(" ", ".") for name in commands}
    groups = {name.split()[0] for name in commands if " " in name}
    for key, value in content.items():
        inner = value.items() if key in groups and isinstance(value, dict) else ()
        found = [(f"{key}.{part}", table) for part, table in inner] or [(key, value)]
        for long_name, table in found:
            table_name = _cut(long_name, _MAX_KEY)
            if not isinstance(table, dict):
                raise UsageError(
                    f"{path} {table_name} = {_toml(table)}: is in no command's table; expected a "
                    "table such as [train] above it; move the line there"
                )
            if table_name not in names | groups:
                raise UsageError(
                    f"{path} [{table_name}]: no such command; "
                    f"{_nearest(table_name, sorted(names), '[{}]')}run caskd --help for the list"
                )


def _nearest(name: str, known: Sequence[str], style: str = "{}") -> str:
    close = get_close_matches(name.replace("_", "-"), known, n=1, cutoff=0.5)
    return f"write {style.format(close[0])}, or " if close else ""


def _toml(value: Any) -> str:
    """A value as a TOML file shows it, cut to a readable length."""
    if isinstance(value, bool):
        return str(value).lower()
    return _cut(f'"{value}"' if isinstance(value, str) else str(value), _MAX_VALUE)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 3]}..."


def _texts(value: Any, hint: Any) -> list[str] | None:
    """The words of a value; None if it is not of the field's type."""
    kinds = [kind for kind in kinds_of(hint) if kind is not NoneType]
    several = is_sequence(hint)
    if isinstance(value, list) and not several:
        return None
    values = value if isinstance(value, list) else [value]
    if not all(any(_is_of(one, kind) for kind in kinds) for one in values):
        return None
    texts = [one if isinstance(one, str) else str(one).lower() for one in values]
    # Behind a flag with several values such a word would be a flag itself. No word of a command
    # line has a NUL.
    if any("\0" in text or (several and text.startswith("--")) for text in texts):
        return None
    return texts


def _is_of(value: Any, kind: Any) -> bool:
    if get_origin(kind) is Literal:
        return any(value == choice and type(value) is type(choice) for choice in get_args(kind))
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    if kind is float:
        return isinstance(value, int | float)
    return isinstance(value, int if kind is int else str)


def _form(hint: Any) -> str:
    if hint is bool:
        return "true or false"
    return f"a list of {form_of(hint)}" if is_sequence(hint) else form_of(hint)


def _flag_words(flag: str, texts: list[str], hint: Any) -> list[str]:
    if hint is bool:
        return [flag if texts == ["true"] else flag.replace("--", "--no-", 1)]
    return [flag, *texts] if is_sequence(hint) else [f"{flag}={texts[0]}"]
