"""The pages name only what exists, and name all that a user can choose by name."""

import dataclasses
import re
import runpy
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from caskd.cli.main import COMMANDS, resolve
from caskd.eval.config import TokenRuleName
from caskd.eval.metrics.metrics import METRICS
from caskd.eval.rules.fixed import RULES
from caskd.precompute.config import PrecomputeConfig
from caskd.store.format.codecs import Chain
from caskd.train.config import TrainConfig

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    page
    for pattern in ("*.md", "docs/**/*.md", "benchmarks/*.md", "examples/**/*.md")
    for page in ROOT.glob(pattern)
)
FOLDERS = ("cli", "eval", "models", "precompute", "store", "train", "src", "tests", "benchmarks",
           "examples", "docs")  # fmt: skip
OTHER_TOOLS = {
    "--help", "--json", "--version", "--nproc-per-node", "--notes", "--dist", "--check", "--text",
    "--teacher-dir", "--local_rank", "--generation-config", "--config", "--no-",
    # scripts of this repository
    "--toy", "--list", "--scale",
    # containers and clusters
    "--build-arg", "--gpus", "--ipc", "--rm", "--time", "--user", "--gpus-per-node", "--nodes",
    "--ntasks-per-node", "--signal",
    # launchers
    "--hostfile", "--module", "--nnodes", "--rdzv-backend", "--rdzv-endpoint",
    # servers of models
    "--api-server-count", "--gpu-memory-utilization", "--max-logprobs", "--max-model-len",
    "--max-num-batched-tokens", "--model-path", "--no-enable-prefix-caching",
    "--pipeline-parallel-size", "--tensor-parallel-size", "--tp",
}  # fmt: skip

OWN_SCRIPTS = ("benchmarks", "examples")
"""Their pages have the flags of their scripts."""

NO_MODULES = {"caskd.toml", "caskd.fish"}
"""Names of files."""

NO_PATHS = {"__init__.py", "train.py"}
"""Any folder's front door, and a user's own script."""


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def spans(page: Path) -> list[str]:
    """What stands in backticks outside of code blocks."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    return re.findall(r"`([^`\n]+)`", text)


def exists(path: str, page: Path) -> bool:
    return any(next(folder.glob(path), None) is not None for folder in (ROOT, page.parent))


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def missing(names: Iterable[str], page: str) -> list[str]:
    text = read(page)
    return [name for name in names if name not in text]


def ids(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_paths_exist(page: Path) -> None:
    named = {span.split()[0].rstrip("/") for span in spans(page)}
    paths = {
        name
        for name in named
        if re.fullmatch(r"[\w./*-]+", name)
        and ((name.split("/")[0] in FOLDERS and "/" in name) or name.endswith((".py", ".md")))
    }
    assert not {path for path in paths - NO_PATHS if not exists(path, page)}


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.M)
            assert anchor in map(slug, headings), link


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_modules_and_names_exist(page: Path) -> None:
    named = set(re.findall(r"\bcaskd(?:\.[A-Za-z_]\w*)+", page.read_text(encoding="utf-8")))
    for dotted in named - NO_MODULES:
        parts = dotted.split(".")
        module = next(
            "/".join(parts[1:end])
            for end in range(len(parts), 0, -1)
            if end == 1 or (ROOT / "/".join(parts[1:end])).is_dir() or is_module(parts[1:end])
        )
        assert module, dotted
        rest = parts[module.count("/") + 2 :]
        value = import_module("caskd." + module.replace("/", "."))
        for name in rest:
            value = getattr(value, name)


def is_module(parts: list[str]) -> bool:
    return (ROOT / "/".join(parts)).with_suffix(".py").exists()


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.relative_to(ROOT).parts[0] not in OWN_SCRIPTS], ids=ids
)
def test_flags_exist(page: Path) -> None:
    flags = {
        "--" + field.name.replace("_", "-")
        for command in COMMANDS.values()
        for field in dataclasses.fields(resolve(command.config))
    }
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z_-]*", page.read_text(encoding="utf-8")))
    assert not {flag for flag in named - OTHER_TOOLS if flag.replace("--no-", "--") not in flags}


def test_the_picture_is_drawn_from_the_imports() -> None:
    drawn = runpy.run_path(str(ROOT / "docs" / "draw_architecture.py"))["draw"]()
    assert drawn == read("docs/architecture.svg"), "run python docs/draw_architecture.py"


def test_every_folder_has_a_line() -> None:
    folders = {path.parent.relative_to(ROOT) for room in FOLDERS[:6] for path in doors(room)}
    assert not missing((f"`{folder.as_posix()}/`" for folder in folders), "docs/architecture.md")


def doors(room: str) -> Iterable[Path]:
    return (ROOT / room).rglob("*/__init__.py")


def choices(config: type, field: str) -> tuple[str, ...]:
    """The values of a flag that takes one of a few, and perhaps none."""
    found = get_args(get_type_hints(config)[field])
    return get_args(found[0]) if type(None) in found else found


def test_folders_of_the_store_import_those_above_them_in_the_list() -> None:
    _, imports, _ = runpy.run_path(str(ROOT / "docs" / "draw_architecture.py"))["read_graphs"]()
    listed = re.findall(r"^\| `store/(\w+)/`", read("docs/architecture.md"), re.M)
    assert len(listed) > 9
    known = {"store.errors", "store.fingerprint", "store.imports", "store.spacing"}
    for name in listed:
        assert imports[f"store.{name}"] <= known, name
        known.add(f"store.{name}")


def test_pages_name_what_can_be_chosen() -> None:
    objectives = choices(TrainConfig, "objective")
    encodings = choices(PrecomputeConfig, "encoding")
    schemes = re.findall(r"\b\w+://", read("store/storage/open.py"))
    assert len(objectives) > 9
    assert len(encodings) > 1
    assert len(schemes) > 2
    assert not missing((f"`{name}`" for name in objectives), "docs/objectives.md")
    assert not missing((f"*{name}*" for name in encodings), "docs/store-format.md")
    assert not missing((f"*{name}*" for name in get_args(Chain)), "docs/store-format.md")
    assert not missing(schemes, "docs/sharing.md")
    assert not missing((f"`{name}`" for name in RULES), "docs/evaluation.md")
    assert not missing((f"`{name}`" for name in METRICS), "docs/prediction.md")
    assert not missing((f"`{name}`" for name in get_args(TokenRuleName)), "docs/token-cascades.md")
    table = "".join(
        line for line in read("docs/commands.md").splitlines() if line.startswith("| `")
    )
    assert not [name for name in COMMANDS if f"{name.split()[-1]}`" not in table]


def test_troubleshooting_quotes_messages_of_the_code() -> None:
    source = "".join(
        re.sub(r'"\s*\n\s*f?"', "", path.read_text())
        for room in FOLDERS[:6]
        for path in (ROOT / room).rglob("*.py")
    )
    quoted = re.findall(r"^### `(.*)`$", read("docs/troubleshooting.md"), re.M)
    assert len(quoted) > 30
    assert not [words for words in quoted if words not in source]
