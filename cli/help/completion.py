"""`caskd completion SHELL`: a script that completes commands, flags and their values."""

import shlex
from dataclasses import dataclass
from typing import Literal

import tyro

from caskd.cli import config_file
from caskd.cli.help.fields import Option, options_of
from caskd.store.io import tell

_ZSH_BEFORE = "#compdef caskd\nautoload -U +X bashcompinit && bashcompinit\n"
# zsh runs the file when a command line is completed for the first time, and expects the words then.
_ZSH_AFTER = """
if [ "${funcstack[1]}" = _caskd ]; then
    _bash_complete -o filenames -F _caskd
fi"""


@dataclass(frozen=True)
class CompletionConfig:
    """Print a script that completes commands, flags and values in a shell."""

    shell: tyro.conf.Positional[Literal["bash", "zsh", "fish"]]
    """Shell of the script: bash, zsh or fish."""


def completion_command(config: CompletionConfig) -> None:
    """Run `caskd completion`."""
    from caskd.cli.main import COMMANDS, resolve

    options = {name: options_of(resolve(row.config)) for name, row in COMMANDS.items()}
    if config.shell == "fish":
        tell(fish_script(options, {name: row.help for name, row in COMMANDS.items()}))
        return
    script = bash_script(options)
    if config.shell == "zsh":
        script = f"{_ZSH_BEFORE}{script}{_ZSH_AFTER}"
    tell(script)


def bash_script(options: dict[str, list[Option]]) -> str:
    """The script for bash, which zsh reads too.

    Args:
        options: of each command.
    """
    groups = sorted({name.split()[0] for name in options if " " in name})
    first = " ".join(dict.fromkeys(name.split()[0] for name in options))
    second = [
        f"        {group}) _caskd_words {shlex.quote(_second(options, group))} ;;"
        for group in groups
    ]
    cases = []
    for name, entries in options.items():
        for option in entries:
            if option.choices and option.flag.startswith("--"):
                words = shlex.quote(" ".join(option.choices))
                cases.append(f"        '{name} {option.flag}') _caskd_words {words}; return ;;")
    flags = [
        f"        '{name}') _caskd_words {shlex.quote(' '.join(_flags(entries)))} ;;"
        for name, entries in options.items()
    ]
    words_of = [
        f"        '{name}') _caskd_words {shlex.quote(' '.join(option.choices))}; return ;;"
        for name, entries in options.items()
        for option in entries[:1]
        if option.choices and not option.flag.startswith("--")
    ]
    return "\n".join(
        [
            "# Completion of caskd, written by caskd completion.",
            "_caskd_words() {",
            "    compopt +o filenames 2> /dev/null  # a folder named store is not this word",
            '    COMPREPLY=($(compgen -W "$1" -- "$_caskd_now"))',
            "}",
            "_caskd() {",
            '    local _caskd_now="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}"',
            '    local name="${COMP_WORDS[1]}" depth=1',
            '    case "$name" in',
            f'        {"|".join(groups)}) name="$name ${{COMP_WORDS[2]}}"; depth=2 ;;',
            "    esac",
            '    if [ "$COMP_CWORD" -eq 1 ]; then',
            f"        _caskd_words {shlex.quote(first)}; return",
            "    fi",
            '    if [ "$COMP_CWORD" -le "$depth" ]; then',
            '        case "${COMP_WORDS[1]}" in',
            *("    " + line for line in second),
            "        esac",
            "        return",
            "    fi",
            '    case "$name $before" in',
            *cases,
            "    esac",
            '    case "$_caskd_now" in -*) ;; *)',
            '        case "$name" in',
            *words_of,
            "        esac",
            '        COMPREPLY=($(compgen -f -- "$_caskd_now")); return ;;',
            "    esac",
            '    case "$name" in',
            *flags,
            "    esac",
            "}",
            "complete -o filenames -F _caskd caskd",
        ]
    )


def _second(options: dict[str, list[Option]], group: str) -> str:
    return " ".join(name.split()[1] for name in options if name.startswith(f"{group} "))


def _flags(options: list[Option]) -> list[str]:
    flags = [option.flag for option in options if option.flag.startswith("--")]
    return [*flags, config_file.FLAG, "--help"]


def fish_script(options: dict[str, list[Option]], texts: dict[str, str]) -> str:
    """The script for fish.

    Args:
        options: of each command.
        texts: what each command does.
    """
    lines = [
        "# Completion of caskd, written by caskd completion.",
        "function __caskd_at",
        "    set -l words (commandline -opc)",
        '    test "$words[2..]" = "$argv"',
        "end",
        "function __caskd_in",
        "    set -l words (commandline -opc)",
        "    set -l last (math 1 + (count $argv))",
        '    test (count $words) -ge $last; and test "$words[2..$last]" = "$argv"',
        "end",
    ]
    for name, entries in options.items():
        *group, word = name.split()
        about = f"-d {_fish(texts[name])}"
        lines.append(f"complete -c caskd -f -n {_fish(_at(group))} -a {word} {about}")
        lines += _fish_flags(name, entries)
    lines += [
        f"complete -c caskd -f -n __caskd_at -a {group}"
        for group in sorted({name.split()[0] for name in options if " " in name})
    ]
    return "\n".join(lines)


def _at(words: list[str]) -> str:
    return " ".join(["__caskd_at", *words])


def _fish_flags(name: str, options: list[Option]) -> list[str]:
    condition = f"complete -c caskd -n {_fish(f'__caskd_in {name}')}"
    lines = []
    for option in options:
        if option.flag.startswith("--"):
            values = f" -xa {_fish(' '.join(option.choices))}" if option.choices else ""
            needs = "" if option.is_switch or values else " -r"
            text = _fish(option.text.partition(". ")[0])
            lines.append(f"{condition} -l {option.flag[2:]}{values}{needs} -d {text}")
        elif option.choices:
            lines.append(f"{condition} -f -a {_fish(' '.join(option.choices))}")
    return [*lines, f"{condition} -l {config_file.FLAG[2:]} -r -d {_fish(config_file.HELP)}"]


def _fish(text: str) -> str:
    """A text in fish's single quotes."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
