# ruff: noqa: E501
"""Reference pages from the code: flags of every command, and the Python interface from docstrings."""

import inspect
import re
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from caskd.cli.help import examples_of, options_of, sections
from caskd.cli.main import COMMANDS, resolve

MODULES = ("caskd.store", "caskd.train", "caskd.eval")
PART = re.compile(r"^(Args|Attributes|Returns|Yields|Raises):$", re.M)


def command_pages() -> Mapping[str, str]:
    """File name and Markdown of one page per command; `store` and `router` have a page for all of theirs."""
    groups: dict[str, list[str]] = {}
    for name in COMMANDS:
        groups.setdefault(name.split()[0], []).append(name)
    return {f"{first}.md": _command_page(first, names) for first, names in groups.items()}


def _command_page(first: str, names: list[str]) -> str:
    lines = [f"# caskd {first}", ""]
    for name in names:
        command = COMMANDS[name]
        config = resolve(command.config)
        if name != first:
            lines += [f"## caskd {name}", ""]
        lines += [f"{command.help[0].upper()}{command.help[1:]}.", "", "```"]
        lines += [*examples_of(name, config), "```", ""]
        for title, options in sections(name, options_of(config)):
            lines += [f"**{title}**", "", "| flag | value | meaning |", "|---|---|---|"]
            for option in options:
                form = f"`{_cell(option.form)}`" if option.form else ""
                lines.append(f"| `{option.flag}` | {form} | {_cell(option.text)} |")
            lines.append("")
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*").replace("<", "&lt;")


def python_page() -> str:
    """Markdown of the names that `caskd.store`, `caskd.train` and `caskd.eval` offer."""
    lines = ["# Python reference", ""]
    lines += [
        "Generated from the docstrings. [The guide](../python.md) shows how the parts fit.",
        "",
    ]
    for dotted in MODULES:
        module = import_module(dotted)
        lines += [f"## {dotted}", "", (module.__doc__ or "").split("\n\n")[0].strip(), ""]
        for name in module.__all__:
            lines += _entry(f"{dotted}.{name}", getattr(module, name), "###")
    return "\n".join(lines)


def _entry(dotted: str, value: Any, level: str) -> list[str]:
    lines = [f"{level} {dotted.rpartition('.')[2]}", ""]
    if callable(value) and not _is_config(value):
        lines += ["```text", _signature(dotted, value), "```", ""]
    lines += [_docstring(inspect.getdoc(value) or ""), ""]
    if inspect.isclass(value) and not _is_config(value):
        for name, member in vars(value).items():
            if not name.startswith("_") and _documented(member):
                lines += _entry(f"{dotted}.{name}", _unwrapped(member), level + "#")
    return lines


def _is_config(value: Any) -> bool:
    """Its fields are flags, which have pages of their own."""
    return inspect.isclass(value) and value.__name__.endswith("Config")


def _documented(member: Any) -> bool:
    kinds = (classmethod, staticmethod, property)
    return (isinstance(member, kinds) or inspect.isfunction(member)) and bool(
        _unwrapped(member).__doc__
    )


def _unwrapped(member: Any) -> Any:
    return member.fget if isinstance(member, property) else getattr(member, "__func__", member)


def _signature(dotted: str, value: Callable[..., Any]) -> str:
    """`name(parameters) -> result`, one parameter a line where it is long."""
    try:
        signature = inspect.signature(value)
    except ValueError:
        return dotted
    name = dotted.partition(".")[2].partition(".")[2]
    parameters = [str(p) for p in signature.parameters.values() if p.name not in ("self", "cls")]
    end = "" if signature.return_annotation is signature.empty else f" -> {_name(signature)}"
    short = f"{name}({', '.join(parameters)}){end}"
    if len(short) <= 90:
        return short
    return "\n".join([f"{name}(", *(f"    {parameter}," for parameter in parameters), f"){end}"])


def _name(signature: inspect.Signature) -> str:
    result = signature.return_annotation
    return result if isinstance(result, str) else getattr(result, "__name__", str(result))


def _docstring(text: str) -> str:
    """A Google-style docstring as Markdown: its parts become lists."""
    lines, in_part = [], False
    for line in text.splitlines():
        if PART.match(line):
            in_part = True
            lines += ["", f"**{line[:-1]}**", ""]
        elif in_part and (found := re.match(r"^    (\*{0,2}\w[\w., ]*):(?: (.*))?$", line)):
            lines.append(f"- `{found[1]}`: {found[2] or ''}".rstrip())
        elif in_part and line.startswith("    "):
            lines.append(f"  {line.strip()}")
        else:
            in_part = in_part and not line
            lines.append(line)
    return "\n".join(lines)
