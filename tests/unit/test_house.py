"""The house: who imports whom, what the front doors promise, how large a file may be."""

import ast
import subprocess
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from caskd.cli.main import COMMANDS, resolve

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("cli", "eval", "models", "precompute", "store", "train")
MAY_IMPORT = {
    "cli": {"precompute", "train", "eval", "models", "store"},
    "precompute": {"models", "store"},
    "train": {"models", "store"},
    "eval": {"models", "store"},
    "models": {"store"},
    "store": set[str](),
}
FRONT_DOORS = {
    "store": {
        "TeacherStore", "StoreBatch", "StoreSpec", "StoreError", "pull_store", "push_store",
        "verify_store",
    },
    "precompute": {"PrecomputeConfig", "plan", "precompute"},
    "train": {
        "TrainConfig", "train", "cascade_aware_loss", "keep_mask", "LossSums", "StoreDataset",
        "CascadeTrainer",
    },
    "eval": {"PredictConfig", "predict", "deferral_curve", "DeferralCurve", "Cascade"},
}  # fmt: skip
HEAVY = ("torch", "transformers", "deepspeed")
ENGINES = [("deepspeed", "train/engine"), ("vllm", "models/engines")]
LONGEST_FILE = 350
MOST_MODULES = 14

Module = tuple[str, ...]
"""Parts of a module's name below `caskd`; a package ends in `__init__`."""


def files(*folders: str) -> list[Path]:
    found = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    assert found, f"no Python files in {folders}"
    return found


MODULES: dict[Module, Path] = {
    path.relative_to(ROOT).with_suffix("").parts: path for path in files(*ROOMS)
}


def imported(path: Path) -> Iterator[str]:
    """Every module that a file imports, at its top or inside a function."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module_of(name: str) -> Module | None:
    """The module of caskd that an imported name stands for: itself, or the one that defines it."""
    parts = tuple(name.split("."))
    if parts[0] != "caskd":
        return None
    for end in range(len(parts), 1, -1):
        for module in (parts[1:end], (*parts[1:end], "__init__")):
            if module in MODULES:
                return module
    return None


def imports_of(module: Module) -> set[Module]:
    """Modules of caskd that a module names in its imports."""
    found: set[Module] = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {
                target
                for alias in node.names
                if (target := module_of(f"{node.module}.{alias.name}")) is not None
            }
    return found - {module}


def folder_of(module: Module) -> Module:
    """The folder that a module belongs to; a module of a room's own level stands for itself."""
    if module[-1] == "__init__":
        return module[:-1]
    return module[:-1] if len(module) > 2 else module


def circles(graph: Mapping[Module, Collection[Module]]) -> list[Module]:
    """Nodes on a circle or leading into one: the rest after removing nodes without imports."""
    left = {node: set(targets) & set(graph) - {node} for node, targets in graph.items()}
    while free := {node for node, targets in left.items() if not targets}:
        left = {node: targets - free for node, targets in left.items() if node not in free}
    return sorted(left)


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_only_what_they_may(room: str) -> None:
    allowed = MAY_IMPORT[room] | {room}
    for path in files(room):
        for name in imported(path):
            parts = name.split(".")
            if parts[0] == "caskd" and len(parts) > 1:
                assert parts[1] in allowed, f"{path.relative_to(ROOT)} imports {name}"


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_are_imported_as_caskd(room: str) -> None:
    for path in files(room):
        bare = [name for name in imported(path) if name.split(".")[0] in ROOMS]
        assert not bare, f"{path.relative_to(ROOT)} imports {bare}"


def test_no_circle_between_files() -> None:
    assert not circles({module: imports_of(module) for module in MODULES})


def test_no_circle_between_folders() -> None:
    graph: dict[Module, set[Module]] = {}
    for module in MODULES:
        own = graph.setdefault(folder_of(module), set())
        own |= {folder_of(target) for target in imports_of(module)}
    assert not circles(graph)


def test_circles_are_found() -> None:
    a, b, c, d = (("x", name) for name in "abcd")
    assert circles({a: {b}, b: {c}, c: {a}, d: {a}}) == [a, b, c, d]
    assert circles({a: {b}, b: {c}, c: set(), d: {a}}) == []


def test_folders_stay_small() -> None:
    for room in ROOMS:
        for folder in {path.parent for path in files(room)}:
            modules = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
            assert len(modules) <= MOST_MODULES, folder.relative_to(ROOT)


def walled(module: Module) -> Module | None:
    """The folder whose front door a module stands behind; None for a module that all may import."""
    behind = len(module) > 2 or module[0] == "models"
    return module[:-1] if behind and module[-1] != "__init__" else None


def second_doors(module: Module, names: Iterable[str]) -> list[str]:
    """The imports that enter a folder by another way than its front door."""
    bad = []
    for name in names:
        target = module_of(name)
        folder = walled(target) if target else None
        if target is None or folder is None or module[: len(folder)] == folder:
            continue
        door = "caskd." + ".".join(folder)
        if name != f"{door}.{target[-1]}" or target[-1] not in import_module(door).__all__:
            bad.append(name)
    return bad


def test_folders_are_entered_by_their_front_door() -> None:
    """Outside a sub-folder, `from caskd.store.io import files` and never a module inside."""
    for module, path in MODULES.items():
        bad = second_doors(module, imported(path))
        assert not bad, f"{path.relative_to(ROOT)} imports {bad}"


def test_second_doors_are_found() -> None:
    inside = ("caskd.store.io.files", "caskd.store.io.files.blocks")
    assert second_doors(("eval", "tasks"), inside) == ["caskd.store.io.files.blocks"]
    assert second_doors(("store", "io", "claim"), inside) == []
    assert second_doors(("train", "metrics"), ["caskd.store.io.console"])
    assert second_doors(("train", "metrics"), ["caskd.models.devices.pick_device"])
    assert (
        second_doors(("models", "decoding", "greedy"), ["caskd.models.devices.pick_device"]) == []
    )
    assert second_doors(("train", "metrics"), ["caskd.models.pick_device"]) == []


@pytest.mark.parametrize("folder", sorted({walled(m) for m in MODULES if walled(m)}))
def test_front_doors_of_folders_say_what_others_may_use(folder: Module) -> None:
    door = import_module("caskd." + ".".join(folder))
    assert door.__doc__
    assert list(door.__all__)
    for name in door.__all__:
        assert getattr(door, name) is not None


def test_there_is_one_way_to_each_name() -> None:
    """A door may export a module and a name of it; then nobody takes that name from the module."""
    for module, path in MODULES.items():
        names, tree = set(imported(path)), ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                target = next((n for n in names if n.endswith(f".{node.value.id}")), "")
                found = module_of(target)
                if found and walled(found) not in (None, module[:-1]):
                    door = import_module(target.rpartition(".")[0])
                    value = getattr(import_module(f"caskd.{'.'.join(found)}"), node.attr)
                    again = node.attr in door.__all__ and getattr(door, node.attr) is value
                    assert not again, f"{path}: {node.value.id}.{node.attr}"


@pytest.mark.parametrize(("name", "room"), ENGINES)
def test_an_engine_is_imported_in_one_folder(name: str, room: str) -> None:
    users = [path for path in files(*ROOMS) if name in {n.split(".")[0] for n in imported(path)}]
    assert {path.parent for path in users} == {ROOT / room}


def test_store_imports_nothing_heavy() -> None:
    for path in files("store"):
        heavy = {name.split(".")[0] for name in imported(path)} & set(HEAVY)
        assert not heavy, f"{path.relative_to(ROOT)} imports {heavy}"


@pytest.mark.parametrize("room", ["precompute", "train", "eval"])
def test_configs_import_nothing_heavy(room: str) -> None:
    heavy = {name.split(".")[0] for name in imported(ROOT / room / "config.py")} & set(HEAVY)
    assert not heavy


def test_files_stay_small() -> None:
    long = {
        str(path.relative_to(ROOT)): count
        for path in files(*ROOMS, "tests", "examples")
        if (count := len(path.read_text(encoding="utf-8").splitlines())) > LONGEST_FILE
    }
    assert not long


def test_examples_stay_short() -> None:
    for path in (ROOT / "examples").glob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 100, path


@pytest.mark.parametrize("room", ROOMS)
def test_links_resolve_and_are_typed(room: str) -> None:
    link = ROOT / "src" / "caskd" / room
    assert link.resolve() == ROOT / room
    assert (ROOT / room / "py.typed").exists()


@pytest.mark.parametrize("room", FRONT_DOORS)
def test_front_doors_hand_out_what_they_promise(room: str) -> None:
    door = import_module(f"caskd.{room}")
    assert set(door.__all__) == FRONT_DOORS[room]
    for name in door.__all__:
        assert getattr(door, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        door.no_such_name  # noqa: B018


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_resolves(name: str) -> None:
    assert isinstance(resolve(COMMANDS[name].config), type)
    assert callable(resolve(COMMANDS[name].function))


def heavy_after(code: str) -> str:
    """What of HEAVY a fresh interpreter has loaded after running `code`."""
    script = f"import sys\n{code}\nprint([n for n in {HEAVY} if n in sys.modules], file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return done.stderr.strip()


@pytest.mark.parametrize("words", [[], ["--help"], ["--version"], ["store", "--help"]])
def test_help_loads_nothing_heavy(words: list[str]) -> None:
    assert heavy_after(f"from caskd.cli.main import main; assert main({words}) == 0") == "[]"


@pytest.mark.parametrize("room", ["store", "precompute", "train", "eval"])
def test_front_doors_load_nothing_heavy(room: str) -> None:
    config = "" if room == "store" else f"; import caskd.{room}.config"
    assert heavy_after(f"import caskd.{room}{config}") == "[]"


def test_opening_a_store_loads_nothing_heavy() -> None:
    assert heavy_after("from caskd.store import TeacherStore, verify_store") == "[]"
    assert heavy_after("import caskd.cli.store_commands, caskd.store.inspect") == "[]"


def test_tests_of_the_store_load_nothing_heavy() -> None:
    folder = ROOT / "tests" / "unit" / "store"
    names = {path.stem for path in folder.glob("test_*.py")}
    paths = f"sys.path[:0] = [{str(folder)!r}, {str(ROOT / 'tests')!r}]"
    assert heavy_after(f"{paths}\nimport {', '.join(sorted(names))}") == "[]"


def test_the_encoding_flag_offers_every_encoding() -> None:
    from caskd.precompute.config import PrecomputeConfig
    from caskd.store.format import DEFAULT_ENCODING, ROW_ENCODINGS, ROW_KINDS, written_encodings

    offered = get_args(get_args(get_type_hints(PrecomputeConfig)["encoding"])[0])
    assert offered == tuple(written_encodings()) == ("fitted2", "exact")
    assert DEFAULT_ENCODING in offered
    assert all((kind, name) in ROW_ENCODINGS for kind in ROW_KINDS for name in offered)


def test_the_help_of_each_command_loads_nothing_heavy() -> None:
    lines = "\n".join(
        f"try: main({name.split()} + ['--help'])\nexcept SystemExit as stop: assert stop.code == 0"
        for name in COMMANDS
    )
    assert heavy_after(f"from caskd.cli.main import main\n{lines}") == "[]"


OPENING = ("from_pretrained", "from_config")


def openings(path: Path) -> list[ast.Call]:
    """Calls by which transformers or peft open a checkpoint."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    named = [node for node in nodes if isinstance(node, ast.Attribute) and node.attr in OPENING]
    # A quantiser is chosen by a config; it opens nothing.
    named = [node for node in named if "Quantizer" not in ast.unparse(node.value)]
    calls = [node for node in nodes if isinstance(node, ast.Call) and node.func in named]
    assert len(calls) == len(named), f"{path}: an opening is passed on, not called"
    return calls


def test_only_models_opens_checkpoints() -> None:
    users = {path for path in files(*ROOMS, "benchmarks") if openings(path)}
    assert {path.relative_to(ROOT).as_posix() for path in users} == {
        "benchmarks/gguf_teacher.py",  # unpacks a GGUF file, which caskd does not open
        "models/opening/configs.py",
        "models/opening/weights.py",
    }


def test_no_checkpoint_is_opened_with_its_own_code() -> None:
    for path in files(*ROOMS, "benchmarks", "examples"):
        for call in openings(path):
            given = {word.arg: word.value for word in call.keywords}
            code = given.get("trust_remote_code")
            where = f"{path.relative_to(ROOT)}:{call.lineno}"
            assert isinstance(code, ast.Constant), where
            assert code.value is False, where
