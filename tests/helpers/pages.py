"""Command lines that the pages show."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
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


def needs_more(page: Path) -> set[str]:
    """Blocks behind a comment `<!-- needs ... -->`: GPUs, a cloud, a server, a network."""
    marked = re.findall(
        r"^<!-- needs [^\n]* -->\n\n?(?:```\n(.*?)^```|((?:    [^\n]*\n)+))",
        page.read_text("utf-8"),
        re.S | re.M,
    )
    return {(fenced or indented).replace("\n    ", "\n").strip() for fenced, indented in marked}
