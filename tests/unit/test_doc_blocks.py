"""Every command line that a page shows is one that caskd takes, and every script is there.

The Python blocks run in `tests/integration/test_doc_python.py`.
"""

import re
import shlex
from contextlib import nullcontext
from pathlib import Path

import pytest

from caskd.cli.config_file import take_config
from caskd.cli.main import COMMANDS, resolve
from caskd.cli.values import check_words
from caskd.store.errors import UsageError

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    page
    for pattern in ("*.md", "docs/*.md", "benchmarks/*.md", "examples/**/*.md")
    for page in ROOT.glob(pattern)
    if page.name != "CHANGELOG.md"
)
NOT_OURS = {
    "pip": "installs packages: needs the network",
    "export": "sets credentials and caches of the reader's own machine",
    "sh": "runs the script that caskd init wrote, which has a test of its own",
    "just": "runs the test suite itself",
    "pytest": "runs the test suite itself",
    "srun": "needs a SLURM cluster; the caskd command behind it is checked",
    "#SBATCH": "needs a SLURM cluster",
}
"""First words of lines that are not run here, and why."""
FOLDERS = ("", "examples/reproduce_cat", "examples/better_than_cat")
"""Where the scripts of a page are."""
LAUNCHERS = ("torchrun", "deepspeed", "srun")


def blocks(page: Path) -> list[str]:
    """Code blocks of a page without a language, fenced or indented, but no trees of files."""
    text = page.read_text(encoding="utf-8")
    fenced = re.findall(r"^```\n(.*?)^```", text, re.S | re.M)
    rest = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    indented = re.findall(r"(?:^    .*\n)+", rest, re.M)
    return [block.replace("\n    ", "\n").strip() for block in (*fenced, *indented)]


def lines(block: str) -> list[str]:
    """Command lines: continued lines joined, comments dropped, `a && b` split."""
    joined = re.sub(r"\\\n\s*", " ", block)
    found = [re.sub(r"(^|\s)# .*$", "", line).strip() for line in joined.splitlines()]
    return [part.strip() for line in found for part in line.split("&&") if part.strip()]


def is_shell(block: str) -> bool:
    first = re.match(r"[#\w.]+", block)
    known = {"caskd", "python", *LAUNCHERS, *NOT_OURS}
    return first is not None and first[0] in known and not block.startswith("caskd/")


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
