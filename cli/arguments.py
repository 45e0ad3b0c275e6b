"""Flags as words: `--small A --small B` is equivalent to `--small A B`."""

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any, get_args, get_origin, get_type_hints


def multi_value_flags(config_class: type) -> frozenset[str]:
    """Flags of a config class that take several values: its tuple and list fields."""
    hints = get_type_hints(config_class)
    fields = dataclasses.fields(config_class)
    return frozenset(flag_of(field.name) for field in fields if is_sequence(hints[field.name]))


def merge_repeated(args: Sequence[str], flags: Collection[str]) -> list[str]:
    """Move the values of every repeated flag behind its first occurrence.

    Args:
        args: arguments of a command line.
        flags: flags, with dashes, that take several values; other arguments stay unchanged.

    Returns:
        The same arguments, with `--flag A ... --flag B` as `--flag A B ...`.
    """
    merged: list[list[str]] = []
    first: dict[str, list[str]] = {}
    group: list[str] | None = None
    for index, word in enumerate(args):
        if word == "--":
            return [*_flatten(merged), *args[index:]]
        name, equals, value = word.partition("=")
        if not word.startswith("--"):
            group = group if group is not None else _append(merged, [])
            group.append(word)
        elif flag_of(name) in flags:
            group = first.get(flag_of(name)) or _append(merged, [flag_of(name)])
            first[flag_of(name)] = group
            group.extend([value] if equals else [])
        else:
            group = _append(merged, [word])
    return _flatten(merged)


def without_local_rank(args: Sequence[str]) -> list[str]:
    """The arguments without the `--local_rank=N` that the `deepspeed` launcher prepends.

    The launcher also sets LOCAL_RANK, as torchrun does; caskd reads that.
    """
    return [word for word in args if not word.startswith("--local_rank=")]


def _append(groups: list[list[str]], group: list[str]) -> list[str]:
    groups.append(group)
    return group


def _flatten(groups: list[list[str]]) -> list[str]:
    return [word for group in groups for word in group]


def flag_of(name: str) -> str:
    """The flag of a field, or a flag in its usual spelling."""
    return "--" + name.removeprefix("--").replace("_", "-")


def is_sequence(hint: Any) -> bool:
    """Whether a field takes several values."""
    kinds = (get_origin(hint), *(get_origin(part) for part in get_args(hint)))
    return tuple in kinds or list in kinds
