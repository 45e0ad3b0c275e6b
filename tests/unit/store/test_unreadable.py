"""A file that cannot be read is not damaged: verify tells the two apart, and repair stops."""

import builtins
import errno
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from helpers.stores import make_store, tree

from caskd.cli.main import main
from caskd.store import TeacherStore, verify_store
from caskd.store.errors import StoreWriteError, UnreadableError, UnsafeError
from caskd.store.format import canonical_json
from caskd.store.io import files
from caskd.store.share import list_stores
from caskd.store.verify import repair, repair_store
from caskd.store.write import StoreWriter

ERRORS = ("EACCES", "EIO", "ESTALE", "EMFILE", "ETIMEDOUT")
READS = ("open", "read", "pread", "lstat", "stat", "listdir", "scandir")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    make_store(tmp_path / "store")
    return tmp_path / "store"


@contextmanager
def failing(error: str, wrong: Callable[[str, int], bool]) -> Iterator[list[int]]:
    """Make the system calls of reads raise where `wrong(path, number of the call)` is true."""
    count, paths = [0], {}
    number = getattr(errno, error)

    def wrapped(name: str, real: Any) -> Any:
        def call(what: Any, *args: Any, **kwargs: Any) -> Any:
            path = paths.get(what, "") if isinstance(what, int) else os.fspath(what)
            if name == "open" and args and args[0] & (os.O_WRONLY | os.O_DIRECTORY):
                return real(what, *args, **kwargs)
            count[0] += 1
            if wrong(str(path), count[0]):
                raise OSError(number, os.strerror(number), str(path))
            found = real(what, *args, **kwargs)
            if name == "open":
                paths[found] = path
            return found

        return call

    with pytest.MonkeyPatch.context() as patched:
        for name in READS:
            patched.setattr(os, name, wrapped(name, getattr(os, name)))
        yield count


def damage(store: Path) -> str:
    """Flip a byte of a shard; returns the name of its file."""
    name = "data.zarr/argmax/c/1"
    data = (store / name).read_bytes()
    (store / name).write_bytes(bytes([data[0] ^ 1]) + data[1:])
    return name


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize(
    "name",
    ["data.zarr/argmax/c/0", "commits/00000.json", "commits/plan.json", "commits/commits.sha256",
     "seal.json", "store.json", "data.zarr/token_ids/c/0", "data.zarr/argmax", "commits"],
)  # fmt: skip
def test_repair_stops_at_an_unreadable_file_and_changes_nothing(
    error: str, name: str, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(store)
    before, target = tree(store), str(store / name)
    with failing(error, lambda path, _: path == target or path.startswith(f"{target}/")):
        assert main(["store", "repair", str(store)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "nothing was changed" in line
    assert name in line
    assert "unreadable" in line
    assert os.strerror(getattr(errno, error)) in line
    assert tree(store) == before


def test_whichever_read_fails_repair_changes_nothing(store: Path) -> None:
    damaged = damage(store)
    (store / "commits" / "plan.json").write_bytes(b"{}")  # rebuilt by a repair that runs through
    before = tree(store)
    with failing("EIO", lambda path, number: False) as count:
        repair._survey(store, store)
    assert tree(store) == before
    for number in range(1, count[0] + 1, 7):
        error = ERRORS[number % len(ERRORS)]
        stopped = pytest.raises(UnreadableError, match="nothing was changed")
        with failing(error, lambda path, n, number=number: n == number), stopped:
            repair_store(store)
        assert tree(store) == before, number
    report = repair_store(store)
    assert report.restored == ["commits/plan.json"]
    assert damaged in report.removed


def test_verify_tells_unreadable_from_damaged(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged, unreadable = damage(store), "data.zarr/argmax/c/0"

    def wrong(path: str, _: int) -> bool:
        return path.endswith(unreadable)

    for full in (False, True):
        with failing("EACCES", wrong):
            report = verify_store(store, full=full)
        assert not report.ok
        assert [line.split(":")[0] for line in report.unreadable] == [unreadable]
        assert {line.split(":")[0] for line in report.problems} == {damaged, unreadable}
    with failing("EACCES", wrong):
        assert main(["store", "verify", str(store)]) == 1
    printed = capsys.readouterr().out
    assert f"unreadable: {unreadable}" in printed
    assert f"wrong: {damaged}" in printed
    assert "2 problems, 1 of them unreadable, which is not damage" in printed
    with failing("EACCES", wrong):
        assert main(["store", "verify", str(store), "--json"]) == 1
    assert len(json.loads(capsys.readouterr().out)["unreadable"]) == 1


@pytest.mark.parametrize("name", ["commits/plan.json", "commits/00000.json", "commits"])
def test_an_unreadable_record_makes_no_stray(name: str, store: Path) -> None:
    def wrong(path: str, _: int) -> bool:
        return path.endswith(f"/{name}")

    with failing("EIO", wrong):
        try:
            report = verify_store(store)
        except UnreadableError:
            return
    assert report.unreadable
    assert report.problems == report.unreadable


@pytest.mark.parametrize("error", ERRORS)
def test_reading_an_unreadable_file_is_no_damage(error: str, store: Path) -> None:
    opened = TeacherStore.open(store)
    len(opened.index.row_count)
    stopped = pytest.raises(UnreadableError, match="which is not damage")
    with failing(error, lambda path, _: "topk" in path or "argmax" in path), stopped:
        opened.read(range(len(opened)))
    assert opened.read(range(len(opened))).num_rows > 0


def test_what_another_version_wrote_is_not_removed(store: Path) -> None:
    spec = json.loads((store / "store.json").read_bytes())
    spec["format_version"] = 99
    data = canonical_json(spec)
    record = json.loads((store / "commits" / "plan.json").read_bytes())
    from caskd.store.commits import FileRecord

    for entry in record["files"]:
        if entry["name"] == "store.json":
            entry.update(vars(FileRecord.of("store.json", data)))
    (store / "store.json").write_bytes(data)
    (store / "commits" / "plan.json").write_bytes(canonical_json(record))
    before = tree(store)
    with pytest.raises(UnsafeError):
        repair_store(store)
    assert tree(store) == before


def test_a_sealed_record_of_another_version_is_not_removed(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from caskd.store.format import untrusted_json

    before = tree(store)
    monkeypatch.setattr(untrusted_json, "is_record", lambda value: value["unit"] != "00001")
    with pytest.raises(UnsafeError, match="nothing was changed"):
        repair_store(store)
    assert tree(store) == before


def test_a_folder_that_is_not_writable_stops_repair_before_it_begins(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage(store)
    before, real = tree(store), os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: not str(path).endswith("argmax/c") and real(path, mode)
    )
    with pytest.raises(StoreWriteError, match="Nothing was changed"):
        repair_store(store)
    assert tree(store) == before


def test_one_unreadable_store_does_not_hide_the_others(tmp_path: Path) -> None:
    for name in ("a", "b"):
        make_store(tmp_path / name)
    with failing("EACCES", lambda path, _: "/b/" in path):
        states = {Path(entry.url).name: entry.state for entry in list_stores(tmp_path)}
    assert states == {"a": "sealed", "b": "unreadable"}


def test_short_reads_are_read_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(bytes(range(100)))
    real = os.pread
    monkeypatch.setattr(os, "pread", lambda handle, count, at: real(handle, min(count, 7), at))
    assert files.read_small(tmp_path, "file") == bytes(range(100))


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_a_file_of_another_user(store: Path) -> None:
    """The case as users meet it: mode 600, another owner, a process without privileges."""
    damage(store)
    unreadable = store / "data.zarr" / "argmax" / "c" / "0"
    unreadable.chmod(0o600)
    before = tree(store)
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.chdir(store)
        os.setuid(65534)
        try:
            repair_store(".")
        except BaseException as error:
            os.write(writer, f"{type(error).__name__}: {error}".encode())
        os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with builtins.open(reader) as pipe:
        told = pipe.read()
    assert told.startswith("UnreadableError")
    assert "data.zarr/argmax/c/0" in told
    assert "Permission denied" in told
    assert tree(store) == before


def test_a_repair_keeps_a_commit_whose_files_are_still_in_staging(tmp_path: Path) -> None:
    make_store(tmp_path / "whole")
    from helpers.stores import VOCAB, examples, fill, identity

    from caskd.store.io import faults
    from caskd.store.write import plan_store

    path = tmp_path / "store"
    plan_store(path, identity(), examples(), shard_rows=32, vocab=VOCAB)
    for step in ("shard.won:1:EIO", "shard.moving:4:EIO"):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(faults, "hook", faults.Fault(step))
            with pytest.raises(OSError, match="Input/output error"):
                fill(path)
        before = tree(path)
        assert any("still in staging" in line for line in verify_store(path).problems)
        report = repair_store(path)
        assert not report.removed
        assert tree(path) == before
        StoreWriter(path)
    fill(path).seal()
    assert tree(path) == tree(tmp_path / "whole")
