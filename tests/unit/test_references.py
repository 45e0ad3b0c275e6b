"""What tests, benchmarks, examples and pages import from caskd exists."""

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PLACES = ("tests/**/*.py", "benchmarks/**/*.py", "examples/**/*.py", "*.md", "docs/**/*.md",
          "examples/**/*.md")  # fmt: skip


def bound(nodes: Iterable[ast.stmt]) -> Iterator[str]:
    """Names that statements at the top of a module define, also below `if` and `try`."""
    for node in nodes:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                yield node.name
            case ast.Import() | ast.ImportFrom():
                yield from (alias.asname or alias.name for alias in node.names)
            case ast.If() | ast.Try() | ast.With():
                yield from bound(n for n in ast.iter_child_nodes(node) if isinstance(n, ast.stmt))
            case _:
                names = (n for n in ast.walk(node) if isinstance(n, ast.Name))
                yield from (n.id for n in names if isinstance(n.ctx, ast.Store))


NAMED = re.compile(r"from (caskd(?:\.\w+)*) import (?:\(([^)]*)\)|([\w, ]+))")
ADDRESS = re.compile(r"\b(caskd(?:\.\w+)+):(\w+)")


def references(text: str) -> Iterator[tuple[str, str]]:
    """Every (module, name) of caskd that a text imports or names as `module:name`."""
    for module, several, few in NAMED.findall(text):
        names = re.sub(r"#.*", "", several or few).split(",")
        yield from ((module, name.split()[0]) for name in names if name.strip())
    yield from ADDRESS.findall(text)


def file_of(module: str) -> Path | None:
    """The file of a dotted name, if it is a module or a package of caskd."""
    path = ROOT.joinpath(*module.split(".")[1:])
    return next((p for p in (path.with_suffix(".py"), path / "__init__.py") if p.is_file()), None)


def resolves(module: str, name: str) -> bool:
    path = file_of(module) if module != "caskd" else None
    if (module == "caskd" or path) and file_of(f"{module}.{name}"):
        return True
    return path is not None and name in set(bound(ast.parse(path.read_text()).body))


def test_every_import_resolves() -> None:
    found = {path for place in PLACES for path in ROOT.glob(place)}
    for path in found - {Path(__file__).resolve()}:
        named = set(references(path.read_text(encoding="utf-8")))
        missing = [pair for pair in named if not resolves(*pair)]
        assert not missing, f"{path.relative_to(ROOT)} names {missing}"


def test_missing_imports_are_found() -> None:
    text = "from caskd.store.io import (\n    files,  # as m\n    no_such,\n)\ncaskd.cli.main:main"
    found = list(references(text))
    assert found[:2] == [("caskd.store.io", "files"), ("caskd.store.io", "no_such")]
    assert [resolves(*pair) for pair in found] == [True, False, True]
    assert not resolves("caskd.store.nothing", "files")
