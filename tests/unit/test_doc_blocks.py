"""Every command line that a page shows is one that caskd takes, and every script is there.

The Python blocks run in `tests/integration/test_doc_python.py`.
"""

import shlex
from contextlib import nullcontext

import pytest
from helpers.pages import LAUNCHERS, NOT_OURS, ROOT, blocks, is_shell, lines

from caskd.cli.config_file import take_config
from caskd.cli.main import COMMANDS, resolve
from caskd.cli.values import check_words
from caskd.store.errors import UsageError

PAGES = sorted(
    page
    for pattern in ("*.md", "docs/**/*.md", "benchmarks/*.md", "examples/**/*.md")
    for page in ROOT.glob(pattern)
    if page.name != "CHANGELOG.md"
)
FOLDERS = ("", "examples/reproduce_cat", "examples/better_than_cat")
"""Where the scripts of a page are."""
SHELL = [
    pytest.param(line, id=f"{page.relative_to(ROOT)}: {line[:60]}")
    for page in PAGES
    for block in blocks(page)
    if is_shell(block)
    for line in lines(block)
]


def test_blocks_are_found() -> None:
    assert len(SHELL) > 40


@pytest.mark.parametrize("line", SHELL)
def test_a_shown_command_line_is_one_that_caskd_takes(line: str) -> None:
    words = shlex.split(line)
    if words[0] in LAUNCHERS and "caskd.cli" in words:
        words = ["caskd", *words[words.index("caskd.cli") + 1 :]]
    if words[0] == "python":
        check_script(words[1:])
    elif words[0] == "caskd":
        check_command(words[1:])
    else:
        assert words[0] in NOT_OURS, line


def check_command(words: list[str]) -> None:
    size = 2 if " ".join(words[:2]) in COMMANDS else 1
    name = " ".join(words[:size])
    assert name in COMMANDS
    words = words[: words.index(">")] if ">" in words else words
    shown, file = take_config([word for word in words[size:] if word not in ("...", "|")])
    shortened = "..." in words or file is not None
    missing = pytest.raises(UsageError, match=": missing; ") if shortened else nullcontext()
    with missing:
        check_words(resolve(COMMANDS[name].config), shown, f"caskd {name}")


def check_script(words: list[str]) -> None:
    found = [path for folder in FOLDERS if (path := ROOT / folder / words[0])
             and path.is_file()]  # fmt: skip
    assert found, words[0]
    source = found[0].read_text(encoding="utf-8")
    for flag in (word for word in words if word.startswith("--")):
        assert f'"{flag}"' in source, flag
