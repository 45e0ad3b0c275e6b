"""Stores in forked and spawned processes, under a small limit of open files, moved and replaced."""

import errno
import gc
import os
import pickle
import resource
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers.stores import VOCAB, examples, fill, identity, make_store, shard_rows_of, tree

from caskd.cli.main import main
from caskd.store import TeacherStore, verify_store
from caskd.store.errors import (
    CorruptError,
    IdentityError,
    StoreError,
    StoreWriteError,
    UnreadableError,
)
from caskd.store.io import descriptors
from caskd.store.read.open_files import OPEN_FILES
from caskd.store.write import StoreWriter, plan_store


@pytest.fixture
def store(tmp_path: Path) -> TeacherStore:
    return make_store(tmp_path / "store", num=40, shard_rows=16)


@contextmanager
def limit_of_files(soft: int) -> Iterator[None]:
    """A small limit of open files for this process."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def num_open() -> int:
    return len(os.listdir("/proc/self/fd"))


def open_below(folder: Path) -> list[str]:
    """The files below a folder that this process holds open, and nobody else's."""
    numbers = (Path("/proc/self/fd") / name for name in os.listdir("/proc/self/fd"))
    paths = [os.path.realpath(number) for number in numbers]
    return [path for path in paths if path.startswith(f"{folder}/")]


def in_a_fork(act: Callable[[], object]) -> str:
    """What `act` returns or raises in a forked process, as text."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            told = str(act())
        except BaseException as error:
            told = f"{type(error).__name__}: {error}"
        os.write(writer, told.encode())
        os._exit(0)
    os.close(writer)
    with open(reader) as pipe:
        told = pipe.read()
    os.waitpid(child, 0)
    return told


def test_open_files_of_all_stores_stay_below_the_limit(tmp_path: Path) -> None:
    made = [make_store(tmp_path / f"s{i}", num=40, seed=i, shard_rows=16) for i in range(3)]
    expected = [store.read(range(40)).labels.tolist() for store in made]
    OPEN_FILES.clear()
    gc.collect()
    before, held = num_open(), open_below(tmp_path)
    with limit_of_files(before + 12):
        stores = [TeacherStore.open(store.root) for store in made]
        assert [store.read(range(40)).labels.tolist() for store in stores] == expected
        assert 0 < len(OPEN_FILES) <= (before + 12) // 4
        assert len(open_below(tmp_path)) > len(held)
        # Forked readers begin with no open file of their parent.
        told = in_a_fork(lambda: (stores[0].read(range(40)).labels.tolist(), len(OPEN_FILES)))
        assert told == str((expected[0], min(len(OPEN_FILES), (before + 12) // 4)))
    stores.clear()
    made.clear()
    gc.collect()
    assert len(OPEN_FILES) == 0
    assert open_below(tmp_path) == held


def test_files_of_others_leave_room_for_one(store: TeacherStore) -> None:
    """The process has used up its limit but for what the store itself holds."""
    expected = store.read(range(40)).labels.tolist()
    again = TeacherStore.open(store.root)
    again.read([0])
    used = num_open()
    with limit_of_files(used):
        assert again.read(range(40)).labels.tolist() == expected


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
def test_the_limit_of_files_is_never_damage(
    number: int, store: TeacherStore, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    opened, before = TeacherStore.open(store.root), tree(store.root)
    real = os.open

    def full(path: object, flags: int, *args: object, **more: object) -> int:
        if "data.zarr" in str(path) or "commits" in str(path):
            raise OSError(number, os.strerror(number), str(path))
        return real(path, flags, *args, **more)  # type: ignore[call-overload, no-any-return]

    OPEN_FILES.clear()
    monkeypatch.setattr(os, "open", full)
    limit = f"{descriptors.limit():,}"
    with pytest.raises(UnreadableError) as raised:
        opened.read(range(40))
    assert limit in str(raised.value)
    assert "ulimit -n" in str(raised.value)
    for command in ("verify", "repair", "info", "show", "card"):
        assert main(["store", command, str(store.root)]) == 1
        printed = capsys.readouterr()
        assert limit in printed.out + printed.err
        assert "ulimit -n" in printed.out + printed.err
    report = verify_store(store.root)
    assert report.problems == report.unreadable
    assert tree(store.root) == before


def test_a_file_that_another_thread_reads_stays_open(store: TeacherStore) -> None:
    store.read(range(40))
    held = next(iter(OPEN_FILES._files.values()))
    OPEN_FILES.clear()
    assert held.chunk(0) is not None


def test_a_fork_has_its_own_locks(store: TeacherStore) -> None:
    """A thread of the parent holds them at the fork, as a prefetching reader does."""
    expected = store.read(range(40)).labels.tolist()
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with store._arrays._gathering, OPEN_FILES._lock:
            held.set()
            done.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    try:
        assert in_a_fork(lambda: store.read(range(40)).labels.tolist()) == str(expected)
    finally:
        done.set()
        thread.join()


def test_a_pickle_is_the_place_of_the_store(
    store: TeacherStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    opened = TeacherStore.open("store")
    expected = opened.read(range(40))
    monkeypatch.chdir("/")
    data = pickle.dumps(opened)
    assert len(data) < 2000
    again = pickle.loads(data)
    assert again.digest == store.digest
    assert again.read(range(40)).labels.tolist() == expected.labels.tolist()
    shutil.rmtree(store.root)
    make_store(store.root, num=40, seed=1, shard_rows=16)
    with pytest.raises(IdentityError, match="another store"):
        pickle.loads(data)


def test_a_relative_path_stays_after_chdir(
    store: TeacherStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    opened = TeacherStore.open("store")
    monkeypatch.chdir("/")
    assert opened.read(range(40)).num_rows == store.read(range(40)).num_rows


def test_a_store_that_was_moved_is_not_damaged(store: TeacherStore, tmp_path: Path) -> None:
    opened = TeacherStore.open(store.root)
    len(opened.index.row_count)
    store.root.rename(tmp_path / "moved")
    for act in (lambda: opened.read(range(40)), lambda: TeacherStore.open(store.root).vocab):
        with pytest.raises(StoreError) as raised:
            act()
        assert not isinstance(raised.value, CorruptError)
        assert str(store.root) in str(raised.value)
    (tmp_path / "moved").rename(store.root)
    assert opened.read(range(40)).num_rows == TeacherStore.open(store.root).read(range(40)).num_rows


def test_a_store_that_was_replaced_is_not_damaged(store: TeacherStore) -> None:
    opened = TeacherStore.open(store.root)
    len(opened.index.row_count)
    shutil.rmtree(store.root)
    make_store(store.root, num=40, seed=1, shard_rows=16)
    with pytest.raises(IdentityError, match="another store"):
        opened.read(range(40))


def test_a_store_of_links_is_copied_or_fetched(
    store: TeacherStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a snapshot in the cache of the Hub looks like."""
    linked = tmp_path / "snapshot"
    for name in tree(store.root):
        (linked / name).parent.mkdir(parents=True, exist_ok=True)
        (linked / name).symlink_to(store.root / name)
    for command in ("info", "verify", "card"):
        assert main(["store", command, str(linked)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "a link" in line
        assert "store pull" in line
    whole = tmp_path / "link"
    whole.symlink_to(store.root, target_is_directory=True)
    assert verify_store(whole).ok


def test_a_store_that_is_moved_during_a_capture(tmp_path: Path) -> None:
    make_store(tmp_path / "whole")
    path = tmp_path / "store"
    plan_store(path, identity(), examples(), shard_rows=32, vocab=VOCAB)
    fill(path, only=[0])
    writer = StoreWriter(path)
    work = writer.shard(1)
    rows = shard_rows_of(work, writer.spec.shard_rows, writer.spec.top_k)
    len(writer._index.row_count)  # read before
    path.rename(tmp_path / "moved")
    with pytest.raises(StoreWriteError, match="moved or removed during this run"):
        writer.commit(work, rows)
    assert not path.exists()
    fill(tmp_path / "moved").seal()
    assert tree(tmp_path / "moved") == tree(tmp_path / "whole")


@pytest.mark.slow
def test_damage_is_found_without_asserts(store: TeacherStore) -> None:
    code = """
import sys, pathlib
from caskd.store import StoreError, verify_store
assert False, "python -O"
missed, names = [], sys.argv[2:]
for name in names:
    path = pathlib.Path(sys.argv[1], name)
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    try:
        missed += [name] if verify_store(sys.argv[1], full=True).ok else []
    except StoreError:
        pass
    path.write_bytes(data)
sys.exit(bool(missed or not verify_store(sys.argv[1], full=True).ok))
"""
    names = [name for name in tree(store.root) if name != "README.md"]
    subprocess.run([sys.executable, "-O", "-c", code, str(store.root), *names[::9]], check=True)
