# ruff: noqa: E501
"""Build the documentation site.

    python docs/site/build.py --out site

The pages keep their places in the repository, so that every link holds in both. What a page links outside of
`docs/` comes along. Flags and the Python reference are generated here, from the configs and the docstrings.
Warnings are errors.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(Path(__file__).parent))

from reference import command_pages, python_page  # noqa: E402

CONFIG = Path(__file__).with_name("zensical.toml")
PLACE = "      # flags: one generated page per command\n"
FRONT = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "CITATION.cff", "LICENSE")
NO_PAGES = ("site", "__pycache__")


def stage(folder: Path) -> None:
    """Write pages and configuration to `folder`, as zensical reads them."""
    pages = folder / "pages"
    for name in FRONT:
        copy(ROOT / name, pages)
    shutil.copyfile(CONFIG.with_name("extra.css"), pages / "extra.css")
    docs = ROOT / "docs"
    for path in sorted(docs.rglob("*")):
        place = path.relative_to(docs)
        if path.is_file() and path.suffix != ".py" and place.parts[0] not in NO_PAGES:
            copy(path, pages)
    bring_along(pages)
    reference = pages / "docs" / "reference"
    reference.mkdir()
    made = command_pages()
    for name, text in (made | {"python.md": python_page()}).items():
        (reference / name).write_text(text, encoding="utf-8")
    entries = "".join(f'      "docs/reference/{name}",\n' for name in made)
    config = CONFIG.read_text(encoding="utf-8").replace(PLACE, entries)
    (folder / "zensical.toml").write_text(config, encoding="utf-8")


def copy(path: Path, pages: Path) -> Path:
    target = pages / path.relative_to(ROOT)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, target)
    return target


def bring_along(pages: Path) -> None:
    """Copy what pages link outside of `docs/`, and what those pages link in turn."""
    waiting = sorted(pages.rglob("*.md"))
    while waiting:
        page = waiting.pop()
        for target in targets(ROOT / page.relative_to(pages)):
            copied = pages / target.relative_to(ROOT)
            if copied.exists() or target.is_relative_to(ROOT / "docs"):
                continue
            if target.is_dir():
                waiting.append(list_folder(target, pages))
            elif (made := copy(target, pages)).suffix == ".md":
                waiting.append(made)


def targets(page: Path) -> Iterator[Path]:
    """Files and folders of the repository that a page links."""
    if not page.exists():  # the list of a folder
        return
    for link in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
        if "://" not in link:
            yield (page.parent / link).resolve()


def list_folder(folder: Path, pages: Path) -> Path:
    """A page with the files of a linked folder, which has none of its own."""
    name = folder.relative_to(ROOT)
    own = folder / "README.md"
    if own.exists():
        return copy(own, pages)
    files = [path for path in sorted(folder.iterdir()) if path.is_file()]
    for path in files:
        copy(path, pages)
    lines = [f"# Files of {name}", "", *(f"- [{path.name}]({path.name})" for path in files)]
    page = pages / name / "README.md"
    page.write_text("\n".join([*lines, ""]), encoding="utf-8")
    return page


def build(out: Path) -> None:
    """Build the site into `out`; ends with the exit code of zensical where it warns.

    Raises:
        SystemExit: zensical warned or failed.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stage(folder)
        done = subprocess.run(
            [sys.executable, "-m", "zensical", "build", "--strict"], cwd=folder, check=False
        )
        if done.returncode:
            raise SystemExit(done.returncode)
        shutil.copytree(folder / "site", out, dirs_exist_ok=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Build the documentation site.")
    parser.add_argument("--out", type=Path, default=Path("site"))
    build(parser.parse_args().out)
