"""A worker that is overtaken moves the winner's files before it reads them: pilot, shards, seal."""

import os
import signal
import time
from pathlib import Path

import pytest
from helpers import stores
from helpers.captures import config_for, fork_caskd, outcome, sealed_files, words_for
from helpers.tiny import ragged_records, save_tiny

from caskd.precompute import plan, precompute
from caskd.precompute.teacher.transformers_teacher import TransformersTeacher
from caskd.store.io import faults
from caskd.store.read import TeacherStore
from caskd.store.verify import repair_store, verify_store
from caskd.store.write import StoreWriter, plan_store

RECORDS = ragged_records(16, seed=3)
SHARED = {"encoding": "compact", "deterministic": True, "shard_rows": 64}
NUM_WORKERS = 3


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("models") / "big")


@pytest.fixture(scope="module")
def whole(teacher, tmp_path_factory):
    config = config_for(teacher, tmp_path_factory.mktemp("whole"), RECORDS, **SHARED)
    precompute(config)
    return sealed_files(config.store)


def workers(teacher, folder, number):
    base = config_for(teacher, folder, RECORDS, **SHARED)
    plan(base)
    return [
        config_for(teacher, folder, RECORDS, worker=i, num_workers=number, **SHARED)
        for i in range(number)
    ]


def arm(text):
    return lambda: setattr(faults, "hook", faults.Fault(text))


def slow_syncs():
    def hook(name, *_paths):
        if name == "directory.fsync":
            time.sleep(0.15)

    faults.hook = hook


@pytest.mark.parametrize("step", ["pilot.won", "pilot.moving", "shard.won", "shard.moving"])
def test_the_winner_dies_right_after_its_commit(step, teacher, tmp_path, whole):
    configs, log = workers(teacher, tmp_path, NUM_WORKERS), tmp_path / "log"
    prepare = arm(f"{step}:1:kill")
    children = [fork_caskd(words_for(config), log, prepare) for config in configs]
    ended = [outcome(child) for child in children]
    # Whoever wins a commit dies; whoever does not ends well.
    assert set(ended) <= {0, -9}, log.read_text()
    assert -9 in ended
    assert "still in staging" not in log.read_text()
    precompute(config_for(teacher, tmp_path, RECORDS, **SHARED))
    assert sealed_files(configs[0].store) == whole


def test_slow_syncs_hold_nobody_up(teacher, tmp_path, whole):
    configs, log = workers(teacher, tmp_path, 4), tmp_path / "log"
    children = [fork_caskd(words_for(config), log, slow_syncs) for config in configs]
    assert [outcome(child) for child in children] == [0] * 4, log.read_text()
    assert sealed_files(configs[0].store) == whole
    assert verify_store(configs[0].store, full=True).ok


def test_one_winner_stands_still_while_another_goes_on(teacher, tmp_path, whole):
    configs, log = workers(teacher, tmp_path, 2), tmp_path / "log"
    stopped = fork_caskd(words_for(configs[0]), log, arm("pilot.won:1:stop"))
    assert os.WIFSTOPPED(os.waitpid(stopped, os.WUNTRACED)[1])
    assert outcome(fork_caskd(words_for(configs[1]), log)) == 0, log.read_text()
    before = sealed_files(configs[0].store)
    os.kill(stopped, signal.SIGCONT)
    assert outcome(stopped) == 0, log.read_text()
    assert sealed_files(configs[0].store) == before == whole


@pytest.mark.parametrize("winner", ["dies", "is slow"])
def test_a_worker_overtaken_in_the_middle_of_its_pilot(
    winner, teacher, tmp_path, whole, monkeypatch
):
    """The winner has decided and moved nothing yet; this worker is between two batches."""
    configs, log = workers(teacher, tmp_path, 2), tmp_path / "log"
    record = Path(configs[0].store) / "commits" / "pilot.json"
    real, children = TransformersTeacher.rows, []

    def rows(self, examples):
        monkeypatch.setattr(TransformersTeacher, "rows", real)
        prepare = arm("pilot.won:1:kill") if winner == "dies" else slow_syncs
        children.append(fork_caskd(words_for(configs[1]), log, prepare))
        while not record.exists():
            time.sleep(0.01)
        return real(self, examples)

    monkeypatch.setattr(TransformersTeacher, "rows", rows)
    assert precompute(configs[0]).sealed
    assert outcome(children[0]) == (-9 if winner == "dies" else 0), log.read_text()
    assert sealed_files(configs[0].store) == whole


@pytest.mark.parametrize("unit", ["pilot", "shard"])
def test_the_loser_with_other_content_moves_the_files_of_the_winner(unit, tmp_path, monkeypatch):
    path = tmp_path / "store"
    plan_store(path, stores.identity(), stores.examples(), shard_rows=32, vocab=stores.VOCAB)
    if unit == "shard":
        stores.fill(path, only=[])
    winner, loser = StoreWriter(path), StoreWriter(path)
    work = winner.pilot() if unit == "pilot" else winner.shard(0)
    size = work.num_rows if unit == "pilot" else 32
    rows = stores.shard_rows_of(work, size, 4)
    ids = (rows["topk_ids"] + 1) % len(stores.VOCAB)
    others = {**rows, "topk_ids": ids, "argmax": ids[:, 0]}

    def commit(writer, content):
        return writer.commit_pilot(content) if unit == "pilot" else writer.commit(work, content)

    with monkeypatch.context() as patched:
        patched.setattr(faults, "hook", faults.Fault(f"{unit}.won:1:EIO"))
        with pytest.raises(OSError, match="Input/output error"):
            commit(winner, rows)
    assert commit(loser, others) is False
    store = TeacherStore.open(path, allow_unsealed=True)
    assert store.id_order is not None
    if unit == "shard":
        example = work.examples[0].index
        first = rows["argmax"][: work.examples[0].row_count]
        assert store.read([example]).argmax.tolist() == first.tolist()


def test_a_lost_pilot_is_restored(teacher, tmp_path, whole):
    config = config_for(teacher, tmp_path, RECORDS, **SHARED)
    precompute(config)
    (Path(config.store) / "data.zarr" / "id_order" / "c" / "0").unlink()
    report = repair_store(config.store)
    assert report.unsealed
    assert not report.shards
    assert precompute(config).sealed
    assert sealed_files(config.store) == whole
