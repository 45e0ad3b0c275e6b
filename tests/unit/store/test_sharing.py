"""Push and pull between directories: copied files, refusals, resumption."""

import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.stores import VOCAB, examples, fill, identity, make_store, tree

from caskd.store import TeacherStore, pull_store, push_store, verify_store
from caskd.store.errors import (
    CaskdError,
    CorruptError,
    IdentityError,
    IncompleteError,
    StoreError,
    StoreNotFoundError,
    UnsafeError,
    UsageError,
)
from caskd.store.format import canonical_json
from caskd.store.share import CopyReport, list_stores
from caskd.store.storage import DirectoryStorage, RetryPolicy, clean_url, open_storage, retry
from caskd.store.storage.base import TransientError
from caskd.store.write import plan_store

QUICK = RetryPolicy(attempts=4, first_pause=0.0)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    make_store(tmp_path / "store")
    return tmp_path / "store"


@pytest.mark.parametrize("encoding", ["compact", "fitted2"])
def test_a_copy_is_the_store(encoding: str, tmp_path: Path) -> None:
    store = tmp_path / "store"
    make_store(store, encoding=encoding)
    (store / "environment").mkdir(exist_ok=True)
    (store / "environment" / "own.json").write_text("{}")
    (store / "notes.txt").write_text("stays at home")
    pushed = push_store(store, tmp_path / "shared")
    assert pushed.num_sent == pushed.num_files > 0
    pulled = pull_store(tmp_path / "shared", tmp_path / "copy")
    expected = {name: data for name, data in tree(store).items() if name != "notes.txt"}
    assert tree(tmp_path / "copy") == expected
    assert not (tmp_path / "copy" / "environment").exists()
    assert pulled.digest == pushed.digest == TeacherStore.open(tmp_path / "copy").digest
    assert verify_store(tmp_path / "copy", full=True).ok


def test_a_second_copy_sends_nothing(store: Path, tmp_path: Path) -> None:
    push_store(store, tmp_path / "shared")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "shared").rglob("*")}
    assert push_store(store, tmp_path / "shared").num_sent == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "shared").rglob("*")} == before


def test_a_damaged_copy_is_repaired(store: Path, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    push_store(store, shared)
    files = [path for path in (shared / "data.zarr").rglob("c/0") if path.is_file()]
    flipped, short, gone = sorted(files)[:3]
    data = flipped.read_bytes()
    flipped.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    short.write_bytes(short.read_bytes()[:-1])
    gone.unlink()
    assert push_store(store, shared).num_sent == 3
    assert tree(shared) == tree(store)


@pytest.mark.parametrize("copy", [push_store, pull_store])
def test_a_damaged_source_is_refused_before_anything_is_written(
    copy: Callable[[Path, Path], CopyReport], store: Path, tmp_path: Path
) -> None:
    wrong = next(path for path in (store / "data.zarr").rglob("c/0") if path.is_file())
    data = wrong.read_bytes()
    wrong.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    with pytest.raises(CorruptError, match=wrong.relative_to(store).as_posix()):
        copy(store, tmp_path / "shared")
    assert not (tmp_path / "shared").exists()
    wrong.write_bytes(data)
    copy(store, tmp_path / "shared")
    assert tree(tmp_path / "shared") == tree(store)


@pytest.mark.parametrize("name", ["seal.json", "commits/commits.sha256", "commits/plan.json"])
def test_a_changed_record_is_refused(name: str, store: Path, tmp_path: Path) -> None:
    data = (store / name).read_bytes()
    (store / name).write_bytes(data.replace(b"1", b"2", 1))
    with pytest.raises(CorruptError):
        push_store(store, tmp_path / "shared")
    assert not (tmp_path / "shared" / "seal.json").exists()


def test_a_seal_with_wrong_totals_is_refused(store: Path, tmp_path: Path) -> None:
    seal = json.loads((store / "seal.json").read_bytes())
    (store / "seal.json").write_bytes(canonical_json({**seal, "num_rows": seal["num_rows"] + 1}))
    with pytest.raises(CorruptError, match=r"seal\.json"):
        push_store(store, tmp_path / "shared")
    assert not (tmp_path / "shared" / "seal.json").exists()


def test_only_sealed_stores_are_copied(tmp_path: Path) -> None:
    path = tmp_path / "store"
    plan_store(path, identity(), examples(), shard_rows=32, vocab=VOCAB)
    fill(path, only=[0])
    with pytest.raises(IncompleteError, match="not sealed"):
        push_store(path, tmp_path / "shared")
    with pytest.raises(StoreNotFoundError, match=r"no seal\.json"):
        pull_store(tmp_path / "nothing", tmp_path / "copy")
    assert not (tmp_path / "shared").exists()
    assert not (tmp_path / "copy").exists()


def test_another_store_is_refused(store: Path, tmp_path: Path) -> None:
    make_store(tmp_path / "other", seed=1)
    push_store(tmp_path / "other", tmp_path / "shared")
    before = tree(tmp_path / "shared")
    with pytest.raises(IdentityError, match="another store"):
        push_store(store, tmp_path / "shared")
    assert tree(tmp_path / "shared") == before


def test_an_interrupted_copy_of_another_store_is_refused(store: Path, tmp_path: Path) -> None:
    make_store(tmp_path / "other", seed=1)
    push_store(tmp_path / "other", tmp_path / "shared")
    for name in ("seal.json", "store.json", "commits/plan.json"):
        (tmp_path / "shared" / name).unlink()
    before = tree(tmp_path / "shared")
    for copy in (push_store, pull_store):
        with pytest.raises(IdentityError, match="another store"):
            copy(store, tmp_path / "shared")
        assert tree(tmp_path / "shared") == before
    push_store(tmp_path / "other", tmp_path / "shared")
    assert tree(tmp_path / "shared") == tree(tmp_path / "other")


def test_a_capture_in_progress_is_refused(store: Path, tmp_path: Path) -> None:
    path = tmp_path / "half"
    plan_store(path, identity(top_k=3), examples(), shard_rows=32, vocab=VOCAB)
    with pytest.raises(IdentityError, match=r"capture\.top_k is 3 there, 4 here"):
        pull_store(store, path)
    same = tmp_path / "same"
    plan_store(same, identity(), examples(), shard_rows=32, vocab=VOCAB)
    with pytest.raises(IdentityError, match=r"unsealed.*caskd precompute"):
        pull_store(store, same)


def test_a_storage_with_other_files_is_refused(store: Path, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("dear")
    with pytest.raises(UsageError, match=r"thesis\.tex"):
        pull_store(store, tmp_path / "home")
    assert [p.name for p in (tmp_path / "home").iterdir()] == ["thesis.tex"]


@pytest.mark.slow
def test_two_stores_at_once_do_not_mix(tmp_path: Path) -> None:
    for race in range(10):
        sources = [tmp_path / f"{race}-{seed}" for seed in (0, 1)]
        for seed, source in enumerate(sources):
            make_store(source, num=6, seed=seed)
        shared, outcomes = tmp_path / f"shared-{race}", []

        def push(source: Path, shared: Path = shared, outcomes: list[object] = outcomes) -> None:
            try:
                outcomes.append(push_store(source, shared).digest)
            except CaskdError as error:
                outcomes.append(type(error))

        threads = [threading.Thread(target=push, args=(source,)) for source in sources]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert outcomes.count(IdentityError) == 1, outcomes
        assert TeacherStore.open(shared).digest in outcomes
        assert verify_store(shared, full=True).ok


def test_the_same_store_pushed_twice_at_once(store: Path, tmp_path: Path) -> None:
    failures: list[BaseException] = []

    def push() -> None:
        try:
            push_store(store, tmp_path / "shared")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=push) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    push_store(store, tmp_path / "shared")
    assert tree(tmp_path / "shared") == tree(store)


def test_drafts_of_a_dead_copy_are_swept(store: Path, tmp_path: Path) -> None:
    drafts = tmp_path / "copy" / "staging" / "copies"
    drafts.mkdir(parents=True)
    (drafts / "left").write_bytes(b"half a fi")
    pull_store(store, tmp_path / "copy")
    assert tree(tmp_path / "copy") == tree(store)


def reseal(store: Path) -> None:
    """Make digests and seal agree with changed records, as a forger would."""
    import hashlib

    lines = (store / "commits" / "commits.sha256").read_text().splitlines()
    names = [line.split("  ")[1] for line in lines]
    digests = [hashlib.sha256((store / "commits" / n).read_bytes()).hexdigest() for n in names]
    text = "".join(f"{d}  {n}\n" for d, n in zip(digests, names, strict=True))
    (store / "commits" / "commits.sha256").write_text(text)
    seal = json.loads((store / "seal.json").read_bytes())
    seal["commits_digest"] = hashlib.sha256(text.encode()).hexdigest()
    (store / "seal.json").write_bytes(canonical_json(seal))


@pytest.mark.parametrize(
    "name", ["../outside", "/tmp/outside", "commits/00001.json", "seal.json", "x", ".bashrc"]
)
def test_a_forged_name_writes_nothing(name: str, store: Path, tmp_path: Path) -> None:
    path = store / "commits" / "00000.json"
    record = json.loads(path.read_bytes())
    record["files"][0]["name"] = name
    path.write_bytes(canonical_json(record))
    reseal(store)
    with pytest.raises((UnsafeError, CorruptError)):
        pull_store(store, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    assert not (tmp_path / "outside").exists()


def test_links_are_not_followed(store: Path, tmp_path: Path) -> None:
    file = next((store / "data.zarr").rglob("c/0"))
    shutil.move(file, tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError):
        push_store(store, tmp_path / "shared")
    target = tmp_path / "copy"
    target.mkdir()
    (target / "commits").symlink_to(tmp_path)
    with pytest.raises(UnsafeError):
        pull_store(store, target)
    assert not (tmp_path / "commits.sha256").exists()


def test_listing(store: Path, tmp_path: Path) -> None:
    half = tmp_path / "half"
    plan_store(half, identity(), examples(), shard_rows=32, vocab=VOCAB)
    (tmp_path / "begun" / "commits").mkdir(parents=True)
    shutil.copy(store / "commits" / "commits.sha256", tmp_path / "begun" / "commits")
    (tmp_path / "other").mkdir()
    (tmp_path / "later").mkdir()
    (tmp_path / "later" / "store.json").write_text('{"format": "caskd-store", "format_version": 9}')
    found = {Path(entry.url).name: entry for entry in list_stores(tmp_path)}
    states = {name: entry.state for name, entry in found.items()}
    assert states == {
        "store": "sealed", "half": "not sealed", "begun": "not sealed", "later": "unreadable",
    }  # fmt: skip
    assert found["store"].digest == TeacherStore.open(store).digest
    assert list_stores(store) == [found["store"]]
    with pytest.raises(StoreNotFoundError):
        list_stores(tmp_path / "other")


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("ftp://host/x", "unknown URL scheme.*hf://datasets"),
        ("s3:///x", "no bucket"),
        ("hf://user/name", "hf://datasets/USER/NAME"),
        ("hf://datasets/name", "hf://datasets/USER/NAME"),
        ("s3://AKIACANARY:canary@bucket/x", "credentials in the environment"),
        ("s3://bucket/x?X-Amz-Signature=canary", "credentials in the environment"),
        ("gs://bucket/x#canary", "credentials in the environment"),
    ],
)
def test_urls_that_name_no_storage(url: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as refused:
        open_storage(url)
    assert "canary" not in str(refused.value).lower()
    assert "canary" not in clean_url(url).lower()


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "obstore.store", None)
    with pytest.raises(UsageError, match=r"pip install 'caskd\[s3\]'"):
        open_storage("s3://bucket/x")


def test_retries_are_bounded() -> None:
    calls = []

    def never() -> None:
        calls.append(1)
        raise TransientError("no good answer (503)")

    with pytest.raises(
        StoreError, match=r"^where: no good answer \(503\), 4 times in a row.*again"
    ):
        retry(never, "where", QUICK)
    assert len(calls) == 4


def test_pauses_grow_and_have_an_end() -> None:
    class Highest:
        def uniform(self, low: float, high: float) -> float:
            assert low == 0
            return high

    pauses = list(RetryPolicy(attempts=7, first_pause=1, longest_pause=8).pauses(Highest()))  # type: ignore[arg-type]
    assert pauses == [1, 2, 4, 8, 8, 8]


def test_a_directory_creates_once(tmp_path: Path) -> None:
    storage = DirectoryStorage(tmp_path / "new")
    assert storage.create("a/b", b"1")
    assert not storage.create("a/b", b"2")
    assert storage.read("a/b", 0, 1) == b"1"
    storage.flush()
    assert sorted(os.listdir(tmp_path / "new")) == ["a"]
