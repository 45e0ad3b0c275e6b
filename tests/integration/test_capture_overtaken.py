"""A worker that is overtaken moves the winner's files before it reads them: shards, seal."""

import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import stores
from helpers.captures import config_for, fork_caskd, outcome, sealed_files, words_for
from helpers.compact_stores import OldWriter
from helpers.tiny import ragged_records, save_tiny

from caskd.precompute import plan, precompute
from caskd.precompute.rows import filler_rows
from caskd.precompute.teacher.transformers_teacher import TransformersTeacher
from caskd.store.corpus import TokenizedExample
from caskd.store.errors import IdentityError, UsageError
from caskd.store.io import faults
from caskd.store.read import TeacherStore
from caskd.store.verify import verify_store
from caskd.store.write import StoreWriter, plan_store

RECORDS = ragged_records(16, seed=3)
SHARED = {"encoding": "fitted2", "deterministic": True, "shard_rows": 64}
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


@pytest.mark.parametrize("step", ["shard.won", "shard.moving"])
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
    stopped = fork_caskd(words_for(configs[0]), log, arm("shard.won:1:stop"))
    assert os.WIFSTOPPED(os.waitpid(stopped, os.WUNTRACED)[1])
    assert outcome(fork_caskd(words_for(configs[1]), log)) == 0, log.read_text()
    before = sealed_files(configs[0].store)
    os.kill(stopped, signal.SIGCONT)
    assert outcome(stopped) == 0, log.read_text()
    assert sealed_files(configs[0].store) == before == whole


@pytest.mark.parametrize("winner", ["dies", "is slow"])
def test_a_worker_overtaken_in_the_middle_of_a_shard(winner, teacher, tmp_path, whole, monkeypatch):
    """The winner has decided and moved nothing yet; this worker is between two batches."""
    configs, log = workers(teacher, tmp_path, 1), tmp_path / "log"
    record = Path(configs[0].store) / "commits" / "00000.json"
    real, children = TransformersTeacher.rows, []

    def rows(self, examples):
        monkeypatch.setattr(TransformersTeacher, "rows", real)
        prepare = arm("shard.won:1:kill") if winner == "dies" else slow_syncs
        children.append(fork_caskd(words_for(configs[0]), log, prepare))
        while not record.exists():
            time.sleep(0.01)
        return real(self, examples)

    monkeypatch.setattr(TransformersTeacher, "rows", rows)
    assert precompute(configs[0]).sealed
    assert outcome(children[0]) == (-9 if winner == "dies" else 0), log.read_text()
    assert sealed_files(configs[0].store) == whole


def test_the_loser_with_other_content_moves_the_files_of_the_winner(tmp_path, monkeypatch):
    path = tmp_path / "store"
    plan_store(path, stores.identity(), stores.examples(), shard_rows=32, vocab=stores.VOCAB)
    winner, loser = StoreWriter(path), StoreWriter(path)
    work = winner.shard(0)
    rows = stores.shard_rows_of(work, 32, 4)
    ids = (rows["topk_ids"] + 1) % len(stores.VOCAB)
    with monkeypatch.context() as patched:
        patched.setattr(faults, "hook", faults.Fault("shard.won:1:EIO"))
        with pytest.raises(OSError, match="Input/output error"):
            winner.commit(work, rows)
    assert loser.commit(work, {**rows, "topk_ids": ids, "argmax": ids[:, 0]}) is False
    store = TeacherStore.open(path, allow_unsealed=True)
    example = work.examples[0].index
    first = rows["argmax"][: work.examples[0].row_count]
    assert store.read([example]).argmax.tolist() == first.tolist()


def compact_copy(store, path):
    """A store of the same capture as an earlier version wrote it, without its last shard."""
    index, whole = store.index, store.read(range(len(store)))
    examples = []
    for n in range(len(store)):
        tokens = slice(*whole.token_offsets[n : n + 2])
        task = store.spec.tasks[index.task[n]]
        source = int(index.source_index[n])
        examples.append(
            TokenizedExample(whole.token_ids[tokens], whole.is_response[tokens], "ok", source, task)
        )
    identity = {**store.spec.identity, "encoding": "compact"}
    plan_store(path, identity, examples, shard_rows=store.spec.shard_rows, vocab=store.vocab)
    writer = OldWriter(path)

    def rows_of(work, num_rows):
        rows = filler_rows(num_rows, store.spec.top_k)
        for example in work.examples:
            batch = store.read([example.index])
            part = slice(example.row_start, example.row_start + example.row_count)
            for name in rows:
                rows[name][part] = batch.column(name)
        return rows

    pilot = writer.pilot()
    writer.commit_pilot(rows_of(pilot, pilot.num_rows))
    for shard in range(store.spec.num_shards - 1):
        work = writer.shard(shard)
        writer.commit(work, rows_of(work, store.spec.shard_rows))
    return lambda: writer.commit(
        work := writer.shard(store.spec.num_shards - 1), rows_of(work, store.spec.shard_rows)
    )


def test_a_store_of_an_earlier_encoding_is_kept_but_not_continued(teacher, tmp_path, capsys):
    config = config_for(teacher, tmp_path, RECORDS, encoding="exact", shard_rows=64)
    exact = precompute(config)
    old = replace(config, store=str(tmp_path / "old"), encoding=None)
    complete = compact_copy(exact, Path(old.store))
    with pytest.raises(
        IdentityError,
        match=r"1 of 4 shards are missing.*encoding is compact.*"
        r"expected fitted2 or exact; pass another --store",
    ):
        precompute(old)
    complete()
    StoreWriter(old.store).seal()
    before = sealed_files(old.store)
    assert precompute(old).sealed
    assert "already sealed" in capsys.readouterr().out
    assert sealed_files(old.store) == before
    with pytest.raises(IdentityError, match="encoding is 'compact' there, but 'exact' here"):
        precompute(replace(old, encoding="exact"))
    with pytest.raises(UsageError, match=r"--encoding compact.*fitted2 or exact.*omit --encoding"):
        precompute(replace(old, encoding="compact"))
