"""`caskd COMMAND --help`: the most used flags, then the others by purpose, then examples."""

import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby

from caskd.cli import config_file
from caskd.cli.help.fields import Option, options_of
from caskd.cli.help.tables import EXAMPLES, MOST_USED, PURPOSES, SECTIONS

_INDENT = 26
_LEAST_WIDTH, _MOST_WIDTH = 60, 100
_FEW = 9
"""A page of so few options needs no sections."""
_CONFIG = Option("config", config_file.FLAG, "FILE", config_file.HELP, (), False)


def help_page(name: str, config_class: type, description: str) -> str:
    """The help of one command.

    Args:
        name: of the command, such as `store info`.
        config_class: its config.
        description: one sentence.
    """
    options = options_of(config_class)
    width = min(max(shutil.get_terminal_size().columns, _LEAST_WIDTH), _MOST_WIDTH)
    needed = [_usage(option) for option in options if option.required]
    lines = [" ".join([f"usage: caskd {name}", *needed, "[OPTIONS]"])]
    lines += ["", *textwrap.wrap(description, width)]
    for title, members in sections(name, options):
        lines += ["", f"{title}:"]
        for option in members:
            lines += _entry(option, width)
    lines += ["", "examples:", *(f"  {line}" for line in examples_of(name, config_class))]
    return "\n".join(lines)


def examples_of(name: str, config_class: type) -> Sequence[str]:
    """Command lines of a command; without any in the table, one with what must be given."""
    needed = [_usage(option) for option in options_of(config_class) if option.required]
    return EXAMPLES.get(name) or [" ".join([f"caskd {name}", *needed])]


def purposes(names: Iterable[str]) -> Mapping[str, list[str]]:
    """Names of commands by purpose; those of no purpose come last."""
    names = list(names)
    listed = {name for members in PURPOSES.values() for name in members}
    found = {
        purpose: [n for n in names if n in members or n.split()[0] in members]
        for purpose, members in PURPOSES.items()
    }
    found["others"] = [n for n in names if n not in listed and n.split()[0] not in listed]
    return {purpose: members for purpose, members in found.items() if members}


def _usage(option: Option) -> str:
    if not option.flag.startswith("--"):
        return option.flag
    return f"{option.flag} {option.form.split(' ')[0]}"


def sections(name: str, options: Sequence[Option]) -> list[tuple[str, list[Option]]]:
    """The options by purpose: a section begins at a field and lasts until the next one begins."""
    if len(options) <= _FEW:
        return [("options", [*options, _CONFIG])]
    usual = MOST_USED.get(name, ())
    by_name = {option.name: option for option in options}
    found = [("most used", [by_name[field] for field in usual])] if usual else []
    borders = SECTIONS.get(name, {})
    titles: list[tuple[str, Option]] = []
    title = "options"
    for option in options:
        title = borders.get(option.name, title)
        if option.name not in usual:
            titles.append((title, option))
    # A purpose may begin twice, where a subclass adds fields behind those of its base.
    order = list(dict.fromkeys(title for title, _ in titles))
    titles.sort(key=lambda entry: order.index(entry[0]))
    for shown, entries in groupby(titles, key=lambda entry: entry[0]):
        found.append((shown, [option for _, option in entries]))
    return [*found, ("all commands", [_CONFIG])]


def _entry(option: Option, width: int) -> list[str]:
    """The lines of one option: the flag, and its text beside or below it."""
    form = option.form if option.flag.startswith("--") else ""
    head = f"  {option.flag} {form}".rstrip()
    body = textwrap.wrap(option.text, width - _INDENT, break_on_hyphens=False) or [""]
    if len(head) < _INDENT - 1:
        first = head.ljust(_INDENT) + body[0]
        return [first.rstrip(), *(" " * _INDENT + line for line in body[1:])]
    heads = textwrap.wrap(
        head.replace(",", ", "), width, subsequent_indent=" " * 6, break_on_hyphens=False
    )
    return [*(["  " + heads[0].lstrip(), *heads[1:]]), *(" " * _INDENT + line for line in body)]
