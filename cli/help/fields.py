"""What help and completion show of a config class: flags, the form of values, texts, defaults."""

import ast
import dataclasses
import inspect
import itertools
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from caskd.cli.arguments import flag_of, is_sequence
from caskd.cli.values import kinds_of, markers_of, positionals_of

_FORMS = {int: "INT", float: "NUMBER", str: "TEXT", Path: "PATH"}


@dataclass(frozen=True)
class Option:
    """A flag or a word of a command.

    Attributes:
        name: of the field.
        flag: with dashes; of a word without a flag, its name in capitals.
        form: of its value; empty for a switch.
        text: what it does, its default or `(required)` included.
        choices: values of a flag that takes one of a few.
        required: has no default.
    """

    name: str
    flag: str
    form: str
    text: str
    choices: tuple[str, ...]
    required: bool

    @property
    def is_switch(self) -> bool:
        """Whether it has no value."""
        return not self.form


def options_of(config_class: type) -> list[Option]:
    """The options of a config class, in the order of its fields."""
    hints = get_type_hints(config_class, include_extras=True)
    plain, words = get_type_hints(config_class), positionals_of(config_class)
    docs: dict[str, str] = {}
    for base in reversed(config_class.__mro__[:-1]):
        docs |= _docs_of(base)
    found = []
    for field in dataclasses.fields(config_class):
        name, hint = field.name, plain[field.name]
        kinds = [kind for kind in kinds_of(hint) if kind is not NoneType]
        choices = tuple(str(c) for k in kinds if get_origin(k) is Literal for c in get_args(k))
        required = dataclasses.MISSING is field.default is field.default_factory
        text = f"{docs.get(name, '')} {_ending(field, hints[name], required)}".strip()
        flag = name.upper() if name in words else flag_of(name)
        found.append(Option(name, flag, _form(hint, kinds, choices), text, choices, required))
    return found


def _form(hint: Any, kinds: list[Any], choices: tuple[str, ...]) -> str:
    if hint is bool:
        return ""
    form = f"{{{','.join(choices)}}}" if choices else _FORMS.get(kinds[0], "VALUE")
    return f"{form} [{form} ...]" if is_sequence(hint) else form


def _ending(field: Any, hint: Any, required: bool) -> str:
    """The default of a field, or that it must be given."""
    for marker in markers_of(hint):
        if getattr(marker, "help_behavior_hint", None):
            return str(marker.help_behavior_hint)
    if required:
        return "(required)"
    if field.default is True:
        return f"(default: on; --no-{flag_of(field.name)[2:]} turns it off)"
    if field.default in (None, False, "", (), dataclasses.MISSING):
        return ""
    default = field.default
    shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
    return f"(default: {shown})"


@cache
def _docs_of(config_class: type) -> dict[str, str]:
    """The text below each field of a class, on one line."""
    tree = ast.parse(inspect.getsource(config_class).lstrip())
    body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
    found = {}
    for field, after in itertools.pairwise(body):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
        ):
            found[field.target.id] = " ".join(str(after.value.value).split())
    return found
