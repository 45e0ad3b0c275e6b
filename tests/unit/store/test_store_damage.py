"""What must be noticed or finished: interruptions, races, damage, unfinished stores."""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers import stores

from caskd.store import TeacherStore, verify_store
from caskd.store.commits import CommitRecord, commit_record, publish
from caskd.store.corpus import TokenizedExample
from caskd.store.errors import (
    CaskdError,
    CorruptError,
    IncompleteError,
    StoreNotFoundError,
    UnsafeError,
    UsageError,
)
from caskd.store.format import STAGING
from caskd.store.inspect import store_info
from caskd.store.write import StoreWriter, find_store, plan_store


@pytest.fixture
def store(tmp_path: Path) -> TeacherStore:
    return stores.make_store(tmp_path / "s")


@pytest.mark.parametrize("stop", ["staged", "decided", "half moved"])
def test_a_shard_interrupted_at_any_step_is_finished_by_a_rerun(tmp_path: Path, stop: str) -> None:
    whole = stores.tree(stores.make_store(tmp_path / "whole").root)
    path = tmp_path / "s"
    plan_store(path, stores.identity(), stores.examples(), shard_rows=32, vocab=stores.VOCAB)
    record = CommitRecord.from_json(whole["commits/00001.json"], "00001")
    staged = path / STAGING / record.digest
    for item in record.file_records:
        target = staged / publish.staged_name(item.name)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(whole[item.name])
    if stop != "staged":
        (path / "commits" / "00001.json").write_bytes(record.to_json())
    if stop == "half moved":
        first = record.file_records[0].name
        (path / first).parent.mkdir(parents=True, exist_ok=True)
        (staged / publish.staged_name(first)).rename(path / first)
    stores.fill(path).seal()
    assert stores.tree(path) == whole


def test_the_first_commit_of_a_shard_wins(tmp_path: Path) -> None:
    plan_store(
        tmp_path / "s", stores.identity(), stores.examples(), shard_rows=32, vocab=stores.VOCAB
    )
    writer = stores.fill(tmp_path / "s", only=[])
    work = writer.shard(0)
    rows = stores.shard_rows_of(work, 32, 4)
    other = {**rows, "logsumexp": rows["logsumexp"] + np.float32(1e-3)}
    assert writer.commit(work, rows)
    before = stores.tree(tmp_path / "s")
    assert writer.commit(work, rows), "equal content is success"
    assert not writer.commit(work, other), "other content has lost"
    assert stores.tree(tmp_path / "s") == before


def test_a_plan_decided_but_not_published_is_completed(tmp_path: Path) -> None:
    plan_store(
        tmp_path / "a", stores.identity(), stores.examples(), shard_rows=32, vocab=stores.VOCAB
    )
    whole = stores.tree(tmp_path / "a")
    record = commit_record.read_record(tmp_path / "a", commit_record.PLAN)
    staged = tmp_path / "b" / STAGING / record.digest
    for item in record.file_records:
        staged.mkdir(parents=True, exist_ok=True)
        (staged / publish.staged_name(item.name)).write_bytes(whole[item.name])
    (tmp_path / "b" / "commits").mkdir()
    (tmp_path / "b" / "commits" / "plan.json").write_bytes(record.to_json())
    assert find_store(tmp_path / "b") == find_store(tmp_path / "a")
    assert stores.tree(tmp_path / "b") == whole


@pytest.mark.parametrize("existed", [False, True])
def test_a_plan_that_fails_leaves_nothing(tmp_path: Path, existed: bool) -> None:
    path = tmp_path / "s"
    if existed:
        path.mkdir()
    with pytest.raises(UsageError, match=r"8 rows.*\b4\b.*raise --shard-rows"):
        plan_store(path, stores.identity(), stores.examples(), shard_rows=4, vocab=stores.VOCAB)
    with pytest.raises(UsageError, match="no example has a response"):
        plan_store(path, stores.identity(), [], shard_rows=32, vocab=stores.VOCAB)
    none = np.zeros(0, np.uint32), np.zeros(0, np.uint8)
    cut = [TokenizedExample(*none, "unfinished", n, "") for n in range(3)]
    with pytest.raises(UsageError, match=r"all 3 answers.*--on-unfinished keep.*--max-new-tokens"):
        plan_store(path, stores.identity(), cut, shard_rows=32, vocab=stores.VOCAB)
    with pytest.raises(UsageError, match=r"--shard-rows\b.* 1000\b.*--shard-rows 1024"):
        plan_store(path, stores.identity(), [], shard_rows=1000, vocab=stores.VOCAB)
    assert path.exists() == existed
    assert not existed or list(path.iterdir()) == []


def test_a_directory_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UsageError, match=r"'thesis\.tex' but no store"):
        plan_store(tmp_path, stores.identity(), [], shard_rows=32, vocab=stores.VOCAB)
    with pytest.raises(StoreNotFoundError, match=r"no store\.json"):
        TeacherStore.open(tmp_path)
    with pytest.raises(UsageError, match=r"expected a local directory.*caskd store push"):
        find_store("s3://bucket/store")


def test_an_unsealed_store_opens_only_on_request(tmp_path: Path) -> None:
    path = tmp_path / "s"
    plan_store(path, stores.identity(), stores.examples(), shard_rows=32, vocab=stores.VOCAB)
    stores.fill(path, only=[0])
    with pytest.raises(IncompleteError, match="not sealed"):
        TeacherStore.open(path)
    part = TeacherStore.open(path, allow_unsealed=True)
    assert part.read([0]).num_rows > 0
    with pytest.raises(IncompleteError, match="not committed yet"):
        part.read([len(part) - 2])
    with pytest.raises(IncompleteError, match="shards are not committed"):
        StoreWriter(path).seal()
    assert not verify_store(path).ok
    assert store_info(path)["num_committed_shards"] == 1


@pytest.mark.slow
def test_every_missing_truncated_or_changed_file_is_noticed(store: TeacherStore) -> None:
    for name, data in stores.tree(store.root).items():
        if name == "README.md":
            continue
        middle = len(data) // 2
        harms = [
            None,
            data[:middle],
            data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :],
        ]
        for harm in harms:
            (store.root / name).unlink() if harm is None else (store.root / name).write_bytes(harm)
            try:
                noticed = not verify_store(store.root).ok
            except CaskdError:
                noticed = True
            assert noticed, (name, harms.index(harm))
            (store.root / name).write_bytes(data)
    assert verify_store(store.root, full=True).ok


@pytest.mark.parametrize("field", ["topk_id_places", "label_rank"])
def test_reading_changed_bytes_raises(store: TeacherStore, field: str) -> None:
    file = next((store.root / "data.zarr" / field / "c").rglob("0"))
    while file.is_dir():
        file = file / "0"
    data = bytearray(file.read_bytes())
    data[10] ^= 4
    file.write_bytes(bytes(data))
    fresh = TeacherStore.open(store.root)
    with pytest.raises(CorruptError, match=field):
        fresh.read(range(len(fresh)))
    file.unlink()
    with pytest.raises(CorruptError, match="missing"):
        TeacherStore.open(store.root).read([0])


def test_a_file_that_no_commit_names_and_a_link_are_noticed(
    store: TeacherStore, tmp_path: Path
) -> None:
    stray = store.root / "data.zarr" / "argmax" / "c" / "99"
    stray.write_text("x")
    assert any(
        "no commit record names it" in problem for problem in verify_store(store.root).problems
    )
    stray.unlink()
    target = store.root / "data.zarr" / "argmax" / "c" / "0"
    outside = tmp_path / "outside"
    target.rename(outside)
    target.symlink_to(outside)
    assert any("not a regular file" in problem for problem in verify_store(store.root).problems)
    with pytest.raises(UnsafeError):
        TeacherStore.open(store.root).read([0])


def test_a_row_that_lies_is_found_by_full_verification(tmp_path: Path) -> None:
    path = tmp_path / "s"
    exact = stores.identity(encoding="exact")
    plan_store(path, exact, stores.examples(), shard_rows=32, vocab=stores.VOCAB)
    writer = StoreWriter(path)
    for shard in writer.missing_shards():
        work = writer.shard(shard)
        rows = stores.shard_rows_of(work, 32, 4)
        if shard == 1:
            rows["topk_ids"][0, [1, 2]] = rows["topk_ids"][0, [2, 1]]
            rows["topk_logits"][0, [1, 2]] = rows["topk_logits"][0, [2, 1]]
        writer.commit(work, rows)
    writer.seal()
    assert verify_store(path).ok
    report = verify_store(path, full=True)
    assert [p for p in report.problems if "rank order" in p]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 3}, "reads version 1 and 2"),
        ({"format": "other"}, "expected 'caskd-store'"),
        ({"geometry": {}}, "not a valid store.json"),
        ({"identity": []}, "not a valid store.json"),
    ],
)
def test_a_store_json_of_another_kind_is_refused(
    store: TeacherStore, change: dict[str, object], message: str
) -> None:
    path = store.root / "store.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UnsafeError, match=message):
        TeacherStore.open(store.root)
