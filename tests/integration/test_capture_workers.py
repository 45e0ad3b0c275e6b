"""Several workers on one store: alone, together, overtaken, failing."""

import json
from pathlib import Path

import pytest
from helpers.captures import config_for, fork_caskd, outcome, sealed_files, words_for
from helpers.tiny import save_tiny

from caskd.precompute import plan, precompute
from caskd.precompute.teacher.transformers_teacher import TransformersTeacher
from caskd.precompute.workers.run import MAX_FAILED_IN_A_ROW
from caskd.store.errors import FailedShardsError, StoreWriteError, UsageError
from caskd.store.inspect import info_text, store_info
from caskd.store.write import StoreWriter


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("models") / "big")


@pytest.fixture(scope="module")
def whole(teacher, tmp_path_factory):
    """What one worker makes in one go: its files, and the number of shards."""
    config = config_for(teacher, tmp_path_factory.mktemp("whole"), deterministic=True)
    store = precompute(config)
    assert store.spec.num_shards >= 4
    return sealed_files(config.store), store.spec.num_shards


def planned(teacher, folder, **changes):
    config = config_for(teacher, folder, deterministic=True, **changes)
    plan(config_for(teacher, folder, deterministic=True))
    return config


@pytest.fixture
def taken(monkeypatch):
    """The shards that are taken, in their order."""
    shards, real = [], StoreWriter.shard
    monkeypatch.setattr(
        StoreWriter, "shard", lambda self, shard: (shards.append(shard), real(self, shard))[1]
    )
    return shards


def attempts(config):
    return [json.loads(file.read_text()) for file in Path(config.store, "environment").iterdir()]


def test_a_worker_alone_takes_its_own_and_then_what_is_left(teacher, tmp_path, whole, taken):
    config = planned(teacher, tmp_path, worker=1, num_workers=3)
    assert precompute(config).sealed
    files, num_shards = whole
    own = list(range(1, num_shards, 3))
    assert taken[: len(own)] == own
    assert sorted(taken) == list(range(num_shards))
    assert sealed_files(config.store) == files
    (attempt,) = attempts(config)
    assert (attempt["worker"], attempt["num_workers"]) == (1, 3)
    assert (attempt["outcome"], attempt["num_shards"]) == ("done", num_shards)


def test_many_workers_at_once_make_the_same_bytes(teacher, tmp_path, whole):
    configs = [planned(teacher, tmp_path, worker=i, num_workers=3) for i in range(3)]
    log = tmp_path / "log"
    children = [fork_caskd(words_for(config), log) for config in configs]
    assert [outcome(child) for child in children] == [0, 0, 0], log.read_text()
    assert sealed_files(configs[0].store) == whole[0]
    assert {attempt["worker"] for attempt in attempts(configs[0])} <= {0, 1, 2}
    assert "sealed" in log.read_text()


def test_workers_with_lists_in_each_shard_make_the_bytes_of_one(teacher, tmp_path):
    """Encoding fitted2 fits its lists to a shard's own rows: no worker waits for another."""
    same = {"deterministic": True, "encoding": "fitted2"}
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    alone = config_for(teacher, tmp_path / "one", **same)
    precompute(alone)
    plan(config_for(teacher, tmp_path / "two", **same))
    configs = [
        config_for(teacher, tmp_path / "two", worker=i, num_workers=2, **same) for i in (0, 1)
    ]
    log = tmp_path / "log"
    children = [fork_caskd(words_for(config), log) for config in configs]
    assert [outcome(child) for child in children] == [0, 0], log.read_text()
    files = sealed_files(configs[0].store)
    assert files == sealed_files(alone.store)
    assert not [name for name in files if "pilot" in str(name) or "id_order" in str(name)]


def test_without_a_plan_one_of_many_is_refused_before_anything_is_loaded(teacher, tmp_path):
    config = config_for(teacher, tmp_path, worker=0, num_workers=2)
    with pytest.raises(UsageError, match="run caskd plan with the same options first"):
        precompute(config)
    assert not Path(config.store).exists()


def test_a_worker_that_is_overtaken_drops_its_shard(teacher, tmp_path, whole, monkeypatch):
    config, real = planned(teacher, tmp_path), TransformersTeacher.rows

    def rows_while_another_does_it_all(self, examples):
        with monkeypatch.context() as patched:
            patched.setattr(TransformersTeacher, "rows", real)
            precompute(config)
        return real(self, examples)

    with monkeypatch.context() as patched:
        patched.setattr(TransformersTeacher, "rows", rows_while_another_does_it_all)
        assert precompute(config).sealed
    assert sealed_files(config.store) == whole[0]
    by_shards = sorted(attempts(config), key=lambda attempt: attempt["num_shards"])
    assert [a["num_shards"] for a in by_shards] == [0, whole[1]]
    assert by_shards[0]["num_shards_overtaken"] == 1


def poison(monkeypatch, config, shards, error):
    """Make the teacher raise on every example of these shards."""
    writer = StoreWriter(config.store)
    bad = {example.index for shard in shards for example in writer.shard(shard).examples}
    real = TransformersTeacher.rows

    def rows(self, examples):
        if any(example.index in bad for example in examples):
            raise error
        return real(self, examples)

    monkeypatch.setattr(TransformersTeacher, "rows", rows)


def test_a_failing_shard_is_named_and_all_others_are_committed(
    teacher, tmp_path, whole, monkeypatch, capsys
):
    config = planned(teacher, tmp_path)
    with monkeypatch.context() as patched:
        poison(patched, config, [1], RuntimeError(f"boom in {tmp_path}"))
        with pytest.raises(FailedShardsError, match=r"failed: 1 \(shard 1: RuntimeError: boom"):
            precompute(config)
    assert FailedShardsError("").exit_code == 1
    printed = capsys.readouterr().err
    assert "shard 1 failed (RuntimeError: boom" in printed
    assert "Traceback" in printed
    info = store_info(config.store)
    assert info["failed_shards"] == [1]
    assert info["num_committed_shards"] == whole[1] - 1
    assert "failed    1; caskd precompute" in info_text(info)
    (attempt,) = attempts(config)
    assert attempt["failed_shards"] == {"1": "RuntimeError"}  # and no path
    assert precompute(config).sealed
    assert sealed_files(config.store) == whole[0]
    assert store_info(config.store)["failed_shards"] == []


def test_too_little_memory_for_a_shard_is_no_traceback(teacher, tmp_path, monkeypatch, capsys):
    config = planned(teacher, tmp_path)
    poison(monkeypatch, config, [2], MemoryError("CUDA out of memory"))
    with pytest.raises(FailedShardsError, match="smaller --token-budget"):
        precompute(config)
    assert "Traceback" not in capsys.readouterr().err


def test_a_worker_for_which_nothing_works_stops(teacher, tmp_path, monkeypatch, taken):
    config = planned(teacher, tmp_path)
    poison(monkeypatch, config, range(4), RuntimeError("illegal memory access"))
    taken.clear()
    with pytest.raises(FailedShardsError, match="3 shards in a row failed"):
        precompute(config)
    assert len(taken) == MAX_FAILED_IN_A_ROW


def test_a_disk_that_fails_is_not_a_failing_shard(teacher, tmp_path, monkeypatch):
    config = planned(teacher, tmp_path)

    def full(self, *_):
        raise StoreWriteError("cannot write x: No space left on device.")

    monkeypatch.setattr(StoreWriter, "commit", full)
    with pytest.raises(StoreWriteError, match="No space left"):
        precompute(config)
    assert [attempt["outcome"] for attempt in attempts(config)] == ["failed"]
