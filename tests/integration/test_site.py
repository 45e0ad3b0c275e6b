"""The documentation site builds without a warning, loads nothing from elsewhere, has every flag."""

import dataclasses
import re
import runpy
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from caskd.cli.arguments import flag_of
from caskd.cli.main import COMMANDS, resolve
from caskd.cli.values import positionals_of

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "docs" / "site" / "build.py"
PAGES = "".join(path.read_text() for path in sorted((ROOT / "docs").rglob("*.md")))

pytestmark = pytest.mark.slow


class Links(HTMLParser):
    """What a page loads, and where its links lead."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.loaded += [found[name] for name in ("src", "srcset", "data") if found.get(name)]
        if tag == "link" and found.get("rel") not in ("canonical", "next", "prev"):
            self.loaded.append(found["href"])
        elif tag == "a" and "href" in found:
            self.links.append(found["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("zensical", reason="pip install -c constraints.txt -e '.[dev]'")
    out = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--out", str(out)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return out


def read(page: Path) -> Links:
    parser = Links()
    parser.feed(page.read_text(encoding="utf-8"))
    return parser


def test_it_loads_nothing_from_elsewhere(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 50
    for page in pages:
        assert not [url for url in read(page).loaded if re.match(r"(\w+:)?//", url)], page
    for sheet in site.rglob("*.css"):
        assert not re.findall(r"(?:url\(|@import )[\"']?(?:https?:)?//", sheet.read_text()), sheet
    # Scripts of the theme load a library for these alone.
    assert not re.search(r"```(mermaid|pyodide)", PAGES)


def test_every_link_leads_to_a_file(site: Path) -> None:
    for page in site.rglob("*.html"):
        if page.name == "404.html":
            continue
        found = read(page)
        for link in found.links + found.loaded:
            path = unquote(link.partition("#")[0].partition("?")[0])
            if path and not re.match(r"(\w+:|/)", path):
                assert (page.parent / path).exists(), (page.relative_to(site), link)


def test_every_flag_has_a_line() -> None:
    pages = runpy.run_path(str(SCRIPT.with_name("reference.py")))["command_pages"]()
    for name, command in COMMANDS.items():
        config = resolve(command.config)
        for field in dataclasses.fields(config):
            words = positionals_of(config)
            flag = field.name.upper() if field.name in words else flag_of(field.name)
            assert f"| `{flag}` |" in pages[f"{name.split()[0]}.md"], (name, flag)


def test_every_public_name_has_an_entry() -> None:
    page = runpy.run_path(str(SCRIPT.with_name("reference.py")))["python_page"]()
    names = ("TeacherStore", "cascade_aware_loss", "StoreDataset", "Cascade", "deferral_curve")
    assert not [name for name in names if f"### {name}\n" not in page]
    assert "#### read\n" in page
    assert "**Raises**" in page


def test_every_page_stands_in_the_navigation() -> None:
    listed = set(re.findall(r'"(docs/[^"]+\.md)"', (SCRIPT.parent / "zensical.toml").read_text()))
    pages = {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert pages == listed - {"docs/reference/python.md"}


def test_the_pictures_are_those_that_the_script_draws() -> None:
    pictures = runpy.run_path(str(ROOT / "docs" / "draw_pictures.py"))["PICTURES"]
    for name, draw in pictures.items():
        drawn = (ROOT / "docs" / "pictures" / name).read_text()
        assert drawn == draw(), "run python docs/draw_pictures.py"
        assert name in PAGES + (ROOT / "README.md").read_text()
