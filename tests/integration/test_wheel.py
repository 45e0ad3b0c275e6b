"""sdist and wheel hold all code and data, and the wheel's commands run outside the checkout."""

import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("cli", "eval", "models", "precompute", "store", "train")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An sdist of a copy of the sources, and a wheel built from it; the checkout stays as it is."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("built")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("src", *ROOMS):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignored)
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, source],
        check=True,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": ""},
    )
    return folder


@pytest.fixture(scope="module")
def unpacked(built: Path) -> Path:
    [wheel] = built.glob("caskd-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(built / "unpacked")
    return built / "unpacked"


def files_of(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*"):
        if path.is_file() and not str(path).endswith(".pyc"):
            yield path.relative_to(folder).as_posix()


def command(unpacked: Path, *words: str) -> dict[str, object]:
    """Arguments of subprocess for `caskd WORDS` from the unpacked wheel."""
    return {
        "args": [sys.executable, "-u", "-m", "caskd.cli", *words],
        "cwd": unpacked.parent,
        "env": {**os.environ, "PYTHONPATH": str(unpacked), "HF_HUB_OFFLINE": "1"},
        "text": True,
    }


def test_twine_accepts_both(built: Path) -> None:
    pytest.importorskip("twine", reason="needs twine, of caskd[dev]")
    packages = [*built.glob("caskd-*.whl"), *built.glob("caskd-*.tar.gz")]
    assert len(packages) == 2
    line = [sys.executable, "-m", "twine", "check", "--strict", *packages]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_wheel_has_every_file_of_every_room(unpacked: Path) -> None:
    expected = {f"{room}/{name}" for room in ROOMS for name in files_of(ROOT / room)}
    assert set(files_of(unpacked / "caskd")) == expected
    assert {f"{room}/py.typed" for room in ROOMS} <= expected
    assert "cli/demo/demo_teacher/model.safetensors" in expected
    entry_points = next(unpacked.glob("caskd-*.dist-info")) / "entry_points.txt"
    assert "caskd = caskd.cli.main:main" in entry_points.read_text()


@pytest.mark.parametrize("name", ["demo", "eval", "store verify"])
def test_help(name: str, unpacked: Path) -> None:
    done = subprocess.run(**command(unpacked, *name.split(), "--help"), capture_output=True)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stderr
    assert f"usage: caskd {name}" in done.stdout


def test_every_module_imports_from_the_wheel(unpacked: Path) -> None:
    names = [
        "caskd." + name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for name in files_of(unpacked / "caskd")
        if name.endswith(".py") and not name.endswith("__main__.py")
    ]
    if importlib.util.find_spec("vllm") is None:
        names.remove("caskd.models.engines.vllm_steps")  # a class of vLLM, imported by its workers
    code = (
        "import importlib, sys\n"
        f"found = [importlib.import_module(name) for name in {names!r}]\n"
        f"assert all(m.__file__.startswith({str(unpacked)!r}) for m in found)"
    )
    arguments = {**command(unpacked), "args": [sys.executable, "-c", code]}
    done = subprocess.run(**arguments, capture_output=True)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stderr


def test_the_demo_begins(unpacked: Path, tmp_path: Path) -> None:
    out = tmp_path / "demo"
    with subprocess.Popen(
        **command(unpacked, "demo", "--out", str(out)),  # type: ignore[call-overload]
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as demo:
        printed = []
        for line in demo.stdout:
            printed.append(line)
            if line.startswith("$ caskd precompute"):
                break
        demo.kill()
    assert printed[-1].startswith("$ caskd precompute"), printed
    assert (out / "models" / "teacher" / "model.safetensors").is_file()
    assert (out / "models" / "student" / "model.safetensors").is_file()
    assert (out / "train.jsonl").is_file()
