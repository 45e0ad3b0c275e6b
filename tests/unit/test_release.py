"""The Dockerfile, and the version in each file that names one."""

import re
import shutil
import subprocess
import tomllib
from datetime import date
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = {"cli", "eval", "models", "precompute", "store", "train"}
HEADING = re.compile(r"^## (\S+)(?: \(([\d-]+)\))?$", re.M)


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def copied() -> set[str]:
    """What the Dockerfile copies out of the checkout."""
    lines = re.findall(r"^COPY (?!--)(.+) \S+$", read("Dockerfile"), re.M)
    return {word for line in lines for word in line.split()}


def test_hadolint_finds_nothing() -> None:
    hadolint = shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("needs hadolint, of caskd[dev]")
    done = subprocess.run(
        [hadolint, "--no-color", ROOT / "Dockerfile"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_image_gets_what_the_package_needs() -> None:
    needed = {"pyproject.toml", "constraints.txt", "README.md", "LICENSE", "src", *ROOMS}
    assert copied() == needed
    assert set(re.findall(r"^!(.+)$", read(".dockerignore"), re.M)) == needed


def test_the_image_runs_as_a_user_and_keeps_no_cache() -> None:
    text = read("Dockerfile")
    assert re.findall(r"^USER (.+)$", text, re.M)[-1] == "1000"
    [install] = re.findall(r"pip install.*", text)
    assert "--no-cache-dir -c constraints.txt" in install


def test_the_newest_release_of_the_changelog_is_the_version() -> None:
    version = tomllib.loads(read("pyproject.toml"))["project"]["version"]
    headings = [found for found in HEADING.findall(read("CHANGELOG.md")) if found[1]]
    assert headings[0][0] == version
    assert date.fromisoformat(headings[0][1])
    cited = dict(re.findall(r"^(version|date-released): (\S+)$", read("CITATION.cff"), re.M))
    assert cited == {"version": version, "date-released": headings[0][1]}
