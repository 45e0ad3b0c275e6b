"""s3:// against a real S3 server: push, pull, ls, reading through the cache."""

import multiprocessing
import threading
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from helpers.s3_server import BUCKET, FaultProxy, environment, s3_server
from helpers.stores import VOCAB, make_store, tree

from caskd.cli.main import main
from caskd.store import StoreBatch, TeacherStore, pull_store, push_store
from caskd.store.errors import (
    CorruptError,
    IdentityError,
    IncompleteError,
    StoreError,
    StoreNotFoundError,
    UsageError,
)
from caskd.store.read.shard_cache import ShardCache
from caskd.store.share import list_stores
from caskd.store.storage import RetryPolicy, open_storage
from caskd.store.storage.object_store import ObjectStorage

QUICK = RetryPolicy(attempts=4, first_pause=0.001)
URL = f"s3://{BUCKET}/casks/toy"
NUM_EXAMPLES = 40


@pytest.fixture(scope="module")
def server() -> Iterator[int]:
    with s3_server() as port:
        yield port


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "store"
    make_store(path, num=NUM_EXAMPLES, shard_rows=16)
    return path


@pytest.fixture(autouse=True)
def use_server(server: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in environment(server, CASKD_CACHE=str(tmp_path / "cache")).items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def pushed(server: int, source: Path) -> str:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(server).items():
            patch.setenv(name, value)
        push_store(source, URL)
    return URL


def assert_same(left: StoreBatch, right: StoreBatch) -> None:
    for field in fields(StoreBatch):
        np.testing.assert_array_equal(getattr(left, field.name), getattr(right, field.name))


def test_there_and_back(pushed: str, source: Path, tmp_path: Path) -> None:
    report = pull_store(pushed, tmp_path / "copy")
    assert tree(tmp_path / "copy") == tree(source)
    assert report.digest == TeacherStore.open(source).digest


def test_the_command_line(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"s3://{BUCKET}/typed/toy"
    assert main(["store", "push", str(source), url]) == 0
    assert main(["store", "ls", f"s3://{BUCKET}/typed"]) == 0
    assert main(["store", "info", url]) == 0
    assert main(["store", "show", url, "--example", "1"]) == 0
    assert main(["store", "card", url]) == 0
    assert main(["store", "pull", url, str(tmp_path / "copy")]) == 0
    printed = capsys.readouterr().out
    assert f"{source} -> {url}: sealed" in printed
    assert f"{url}  sealed" in printed
    assert "store     toy (sealed)" in printed
    assert tree(tmp_path / "copy") == tree(source)


def objects() -> list[tuple[str, object, object]]:
    """Every object of the bucket: its key, its ETag and the time of its last PUT."""
    import obstore

    listed = obstore.list(ObjectStorage.open("s3", BUCKET, "")._store)
    return [
        (meta["path"], meta["e_tag"], meta["last_modified"]) for part in listed for meta in part
    ]


def test_a_target_that_is_used_is_left_as_it_is(source: Path) -> None:
    for name in ("notes.txt", "commits/plan.json"):
        open_storage(f"s3://{BUCKET}/used-{name[:5]}").write(name, b"{}")
    before = objects()
    with pytest.raises(UsageError, match=r"holds 'notes\.txt' but no store"):
        push_store(source, f"s3://{BUCKET}/used-notes")
    with pytest.raises(IdentityError, match="holds the plan of a capture"):
        push_store(source, f"s3://{BUCKET}/used-commi")
    assert objects() == before


def test_another_store_is_refused(pushed: str, tmp_path: Path) -> None:
    make_store(tmp_path / "other", seed=5)
    before = objects()
    with pytest.raises(IdentityError, match="another store"):
        push_store(tmp_path / "other", pushed)
    assert objects() == before
    assert list_stores(f"s3://{BUCKET}/casks")[0].state == "sealed"


def test_a_missing_store(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError):
        pull_store(f"s3://{BUCKET}/nothing", tmp_path / "copy")
    with pytest.raises(StoreNotFoundError):
        TeacherStore.open(f"s3://{BUCKET}/nothing")
    with pytest.raises(StoreError):
        TeacherStore.open("s3://no-such-bucket/x")


def test_an_unsealed_copy_is_not_read(source: Path) -> None:
    url = f"s3://{BUCKET}/begun"
    digests = (source / "commits" / "commits.sha256").read_bytes()
    assert open_storage(url).create("commits/commits.sha256", digests)
    with pytest.raises(IncompleteError, match="not sealed"):
        TeacherStore.open(url)
    assert list_stores(url)[0].state == "not sealed"


def test_create_is_exclusive() -> None:
    storage = open_storage(f"s3://{BUCKET}/exclusive")
    assert storage.create("a", b"1")
    assert not storage.create("a", b"2")
    assert storage.read("a", 0, 1) == b"1"
    assert storage.size("b") is None


def test_a_file_larger_than_a_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("caskd.store.storage.base.PIECE_BYTES", 100)
    make_store(tmp_path / "large", num=6)
    push_store(tmp_path / "large", f"s3://{BUCKET}/pieces")
    pull_store(f"s3://{BUCKET}/pieces", tmp_path / "copy")
    assert tree(tmp_path / "copy") == tree(tmp_path / "large")


def test_reading_straight(pushed: str, source: Path) -> None:
    local, remote = TeacherStore.open(source), TeacherStore.open(pushed)
    assert (remote.digest, remote.spec, len(remote)) == (local.digest, local.spec, len(local))
    order = np.random.default_rng(0).permutation(NUM_EXAMPLES)
    remote.prefetch(order[:8], ("argmax",))
    assert_same(remote.read(order), local.read(order))
    assert remote.vocab == VOCAB


def test_a_fitted_store_is_read_straight(tmp_path: Path) -> None:
    """Tables and columns of its own, each file fetched for the shards that are read."""
    source, url = tmp_path / "fitted2", f"s3://{BUCKET}/fitted/toy"
    make_store(source, num=NUM_EXAMPLES, shard_rows=16, encoding="fitted2")
    push_store(source, url)
    here, there = TeacherStore.open(source), TeacherStore.open(url)
    there.prefetch([0])
    assert_same(there.read([0]), here.read([0]))
    fetched = {path.name for path in there.root.glob("data.zarr/topk_id_lists/c/*")}
    assert fetched == {"0"}
    assert_same(there.read(range(NUM_EXAMPLES)), here.read(range(NUM_EXAMPLES)))


def test_the_second_reader_fetches_no_shard(
    pushed: str, server: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    TeacherStore.open(pushed).read(range(NUM_EXAMPLES))
    with FaultProxy(server) as proxy:
        asked: list[bytes] = []
        proxy.plan = lambda number, head: asked.append(head)  # type: ignore[func-returns-value]
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
        TeacherStore.open(pushed).read(range(NUM_EXAMPLES))
    assert asked
    assert not [head for head in asked if b"/c/" in head]


def test_prefetch_fetches_what_reading_needs(
    pushed: str, server: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = ("topk_ids", "topk_logits", "tail_mass")
    chosen = range(10, 20)
    with FaultProxy(server) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
        store = TeacherStore.open(pushed)
        store.prefetch(chosen, wanted)
        store._arrays._source.pool.shutdown(wait=True)
        before = proxy.num_requests
        store.read(chosen, wanted)
        # Only what is one file for the whole store may be missing.
        assert proxy.num_requests - before <= 4


def test_the_cache_keeps_its_limit(pushed: str, source: Path, tmp_path: Path) -> None:
    sizes = [path.stat().st_size for path in (source / "data.zarr").rglob("c/*") if path.is_file()]
    limit = sum(sizes) // 4
    cache = ShardCache(tmp_path / "small", limit)
    remote, local = TeacherStore.open_remote(pushed, cache=cache), TeacherStore.open(source)
    for example in range(NUM_EXAMPLES):
        assert_same(remote.read([example]), local.read([example]))
        kept = [p for p in (tmp_path / "small").glob("*/data.zarr/*/c/**/*") if p.is_file()]
        assert sum(path.stat().st_size for path in kept) <= limit + limit // 16
    assert 0 < len(kept) < len(sizes)


def read_all(url: str, cache: str, limit: int, expected: str, failures) -> None:  # type: ignore[no-untyped-def]
    """In a process of its own: read a store in some order several times through a shared cache."""
    try:
        local = TeacherStore.open(expected)
        for round_ in range(3):
            remote = TeacherStore.open_remote(url, cache=ShardCache(Path(cache), limit))
            order = np.random.default_rng(round_).permutation(NUM_EXAMPLES)
            for part in np.array_split(order, 8):
                assert_same(remote.read(part), local.read(part))
    except BaseException as error:
        failures.put(repr(error))


@pytest.mark.slow
@pytest.mark.parametrize("limit", [1 << 30, 2000])
def test_processes_share_a_cache(limit: int, pushed: str, source: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    failures = context.Queue()
    words = (pushed, str(tmp_path / "shared"), limit, str(source), failures)
    readers = [context.Process(target=read_all, args=words) for _ in range(4)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
        assert reader.exitcode == 0
    assert failures.empty(), failures.get()


def test_a_damaged_cache_heals(pushed: str, source: Path, tmp_path: Path) -> None:
    TeacherStore.open(pushed).read(range(NUM_EXAMPLES))
    cached = [p for p in (tmp_path / "cache").glob("*/data.zarr/*/c/**/*") if p.is_file()]
    for path in cached:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    remote, local = TeacherStore.open(pushed), TeacherStore.open(source)
    assert_same(remote.read(range(NUM_EXAMPLES)), local.read(range(NUM_EXAMPLES)))


def test_a_damaged_object_is_refused(source: Path) -> None:
    url = f"s3://{BUCKET}/damaged"
    push_store(source, url)
    storage = open_storage(url)
    name = "data.zarr/argmax/c/1"
    data = bytearray(storage.read(name, 0, storage.size(name) or 0))
    data[3] ^= 1
    storage.write(name, bytes(data))
    store = TeacherStore.open(url)
    store.read(range(NUM_EXAMPLES), ("num_kept",))
    with pytest.raises(CorruptError, match="argmax/c/1"):
        store.read(range(NUM_EXAMPLES), ("argmax",))


def test_faults_while_reading(
    pushed: str, source: Path, server: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patient = RetryPolicy(attempts=30, first_pause=0.0)
    local = TeacherStore.open(source)
    with FaultProxy(server) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
        for seed in range(3):
            proxy.schedule(seed, probability=0.2)
            cache = ShardCache(tmp_path / f"cache-{seed}", 1 << 30)
            try:
                remote = TeacherStore.open_remote(pushed, cache=cache, policy=patient)
                assert_same(remote.read(range(NUM_EXAMPLES)), local.read(range(NUM_EXAMPLES)))
            except CorruptError:
                continue  # damage in transit can outlast three attempts; silence would not be fine


def test_threads_share_a_store(pushed: str, source: Path) -> None:
    remote, failures = TeacherStore.open(pushed), []

    def prefetch(first: int) -> None:
        try:
            for example in range(first, NUM_EXAMPLES, 4):
                remote.prefetch([example])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=prefetch, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    local = TeacherStore.open(source)
    assert_same(remote.read(range(NUM_EXAMPLES)), local.read(range(NUM_EXAMPLES)))
    for thread in threads:
        thread.join()
    assert not failures


@pytest.mark.parametrize("text", ["", "none", "-1", "0", "inf", "nan"])
def test_a_limit_that_is_none(text: str, pushed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CASKD_CACHE_GB", text)
    with pytest.raises(UsageError, match="CASKD_CACHE_GB"):
        TeacherStore.open(pushed)


def test_verify_points_to_pull(pushed: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["store", "verify", pushed]) == 2
    assert f"caskd store pull {pushed} DIRECTORY" in capsys.readouterr().err


def test_the_page_runs(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every `caskd store` command of docs/sharing.md, in its order."""
    page = (Path(__file__).parents[2] / "docs" / "sharing.md").read_text()
    typed = [line.split() for line in page.splitlines() if line.startswith("caskd store ")]
    assert {words[2] for words in typed} == {
        "card", "info", "ls", "pull", "push", "show", "verify",
    }  # fmt: skip
    monkeypatch.chdir(tmp_path)
    pull_store(source, tmp_path / "my-store")
    for words in typed:
        assert main(words[1:]) == 0, words
    assert TeacherStore.open("my-copy").digest == TeacherStore.open(source).digest
