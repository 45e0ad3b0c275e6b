"""A refusal leaves what it refused exactly as it was: files, folders, modes and links."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.stores import VOCAB, examples, fill, identity, make_store

from caskd.cli.main import main
from caskd.store import verify_store
from caskd.store.errors import CaskdError, IdentityError, StoreWriteError, UsageError
from caskd.store.format import canonical_json
from caskd.store.io import faults
from caskd.store.share import push_store
from caskd.store.storage import DirectoryStorage
from caskd.store.write import plan_store


def everything(root: Path) -> dict[str, object]:
    """Every entry below `root`, folders and links included."""

    def entries() -> Iterator[tuple[str, object]]:
        for path in sorted(root.rglob("*")):
            name = path.relative_to(root).as_posix()
            if path.is_symlink():
                yield name, os.readlink(path)
            else:
                yield name, (path.stat().st_mode, path.read_bytes() if path.is_file() else None)

    return dict(entries())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder of each kind that a command may meet."""
    top = tmp_path_factory.mktemp("made")
    make_store(top / "sealed")
    make_store(top / "other", seed=1)
    damaged = shutil.copytree(top / "sealed", top / "other-seal")
    (damaged / "seal.json").write_bytes((top / "other" / "seal.json").read_bytes())
    plan_store(top / "open", identity(), examples(), shard_rows=32, vocab=VOCAB)
    fill(top / "open", only=[0])
    shutil.rmtree(top / "open" / "staging", ignore_errors=True)
    (top / "foreign").mkdir()
    (top / "foreign" / "notes.txt").write_text("mine")
    (top / "planning" / "commits").mkdir(parents=True)
    shutil.copy(top / "open" / "commits" / "plan.json", top / "planning" / "commits")
    (top / "empty").mkdir()
    cut = shutil.copytree(top / "sealed", top / "truncated") / "data.zarr" / "argmax" / "c" / "1"
    cut.write_bytes(cut.read_bytes()[:-1])
    totals = json.loads((top / "sealed" / "seal.json").read_bytes())
    wrong = shutil.copytree(top / "sealed", top / "wrong-totals") / "seal.json"
    wrong.write_bytes(canonical_json({**totals, "num_rows": totals["num_rows"] + 1}))
    return top


REFUSALS = [
    ("store push sealed other", 3),
    ("store pull sealed other", 3),
    ("store push sealed other-seal", 3),
    ("store push sealed open", 3),
    ("store pull sealed open", 3),
    ("store push sealed foreign", 2),
    ("store pull sealed planning", 3),
    ("store push open empty", 2),
    ("store push foreign empty", 2),
    ("store pull open new/folder", 2),
    ("store pull nothing new/folder", 2),
    ("store push other-seal empty", 1),
    ("store push truncated new/folder", 1),
    ("store pull truncated empty", 1),
    ("store push wrong-totals new/folder", 1),
    ("store seal open", 2),
    ("store seal foreign", 2),
    ("store seal empty", 2),
    ("store seal nothing", 2),
    ("store seal other-seal", 1),
    ("store repair foreign", 2),
    ("store repair empty", 2),
    ("store repair nothing", 2),
    ("store card open --write", 2),
    ("store card foreign --write", 2),
    ("store card other-seal --write", 1),
    ("store verify foreign", 2),
    ("store diff sealed foreign", 2),
]


@pytest.mark.parametrize(("words", "code"), REFUSALS)
def test_a_refused_command_changes_nothing(
    words: str, code: int, made: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(made)
    before = everything(made)
    assert main(words.split()) == code, capsys.readouterr()
    assert len(capsys.readouterr().err.splitlines()) <= 1
    assert everything(made) == before


def test_the_loser_of_a_race_for_a_target_changes_nothing(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The target becomes another store between the look and the claim."""
    target, real = tmp_path / "target", DirectoryStorage.create

    def late(self: DirectoryStorage, name: str, data: bytes) -> bool:
        monkeypatch.setattr(DirectoryStorage, "create", real)
        push_store(made / "other", target)
        before.update(everything(target))
        return self.create(name, data)

    before: dict[str, object] = {}
    monkeypatch.setattr(DirectoryStorage, "create", late)
    with pytest.raises(IdentityError, match="another store"):
        push_store(made / "sealed", target)
    assert everything(target) == before
    assert verify_store(target, full=True).ok


@pytest.mark.parametrize("point", ["file.write", "file.fsync", "file.rename", "directory.fsync"])
@pytest.mark.parametrize("error", ["ENOSPC", "EIO", "EACCES"])
def test_a_write_that_fails_leaves_a_good_store_good(
    point: str, error: str, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "store"
    shutil.copytree(made / "sealed", store)
    before = everything(store)
    monkeypatch.setattr(faults, "hook", faults.Fault(f"{point}:1+:{error}"))
    assert main(["store", "card", str(store), "--write"]) == StoreWriteError.exit_code
    monkeypatch.undo()
    after = everything(store)
    if point != "directory.fsync":  # there the card is in its place already
        assert after == before
    assert "staging" not in after
    assert verify_store(store, full=True).ok


def test_a_plan_that_fails_leaves_no_folder(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / "store"
    with pytest.raises(UsageError):
        plan_store(target, identity(), [], shard_rows=32, vocab=VOCAB)
    assert everything(tmp_path) == {}


def test_a_plan_of_other_inputs_changes_no_store_that_lost_files(
    made: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    shutil.copytree(made / "open", store)
    (store / "data.zarr" / "token_ids" / "c" / "0").unlink()
    before = everything(store)
    with pytest.raises(CaskdError, match="files of its plan are lost"):
        plan_store(store, identity(), examples(seed=3), shard_rows=32, vocab=VOCAB)
    assert everything(store) == before
