"""Captures that stop, run again, or find another identity."""

import os
from pathlib import Path

import pytest
import torch
from helpers.captures import config_for, sealed_files
from helpers.tiny import save_tiny

from caskd.precompute import precompute
from caskd.precompute.workers.worker import background_writer
from caskd.store.errors import IdentityError
from caskd.store.read import TeacherStore
from caskd.store.write import StoreWriter


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("models") / "big")


def test_running_again_says_so_and_changes_nothing(teacher, tmp_path, capsys):
    config = config_for(teacher, tmp_path)
    precompute(config)
    before = sealed_files(config.store)
    capsys.readouterr()
    assert precompute(config).sealed
    assert "sealed, nothing to do" in capsys.readouterr().out
    assert sealed_files(config.store) == before


def test_two_deterministic_runs_are_byte_identical(teacher, tmp_path):
    stores = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        config = config_for(teacher, tmp_path / name, deterministic=True)
        precompute(config)
        stores.append(sealed_files(config.store))
    assert stores[0] == stores[1]
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_run_that_stopped_is_completed_to_the_same_bytes(teacher, tmp_path, monkeypatch):
    (tmp_path / "whole").mkdir()
    whole = config_for(teacher, tmp_path / "whole", deterministic=True)
    precompute(whole)
    (tmp_path / "torn").mkdir()
    torn = config_for(teacher, tmp_path / "torn", deterministic=True)
    real, committed = StoreWriter.commit, []

    def commit_twice_then_stop(self, work, *rest):
        if len(committed) == 2:
            raise KeyboardInterrupt
        committed.append(work.shard)
        return real(self, work, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(StoreWriter, "commit", commit_twice_then_stop)
        with pytest.raises(KeyboardInterrupt):
            precompute(torn)
    assert TeacherStore.open(torn.store, allow_unsealed=True).num_committed_shards() == 2
    with monkeypatch.context() as patched:
        again = []
        patched.setattr(
            StoreWriter, "commit",
            lambda self, work, *rest: (again.append(work.shard), real(self, work, *rest))[1],
        )  # fmt: skip
        store = precompute(torn)
    assert sorted([*committed, *again]) == list(range(store.spec.num_shards))
    assert sealed_files(torn.store) == sealed_files(whole.store)


def test_what_surrounds_a_run_is_recorded_outside_the_seal_and_without_paths(teacher, tmp_path):
    config = config_for(teacher, tmp_path)
    precompute(config)
    (record,) = Path(config.store, "environment").iterdir()
    text = record.read_text()
    assert torch.__version__.split("+")[0] in text
    assert str(tmp_path) not in text
    assert os.uname().nodename not in text


def test_dry_run_loads_no_weights_and_writes_nothing(teacher, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("caskd.precompute.teacher.transformers_teacher.load_model", refuse)
    config = config_for(teacher, tmp_path, dry_run=True)
    assert precompute(config) is None
    assert not Path(config.store).exists()


def test_another_identity_is_refused_before_weights_are_loaded(teacher, tmp_path, monkeypatch):
    precompute(config_for(teacher, tmp_path))

    def refuse(*args, **kwargs):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("caskd.precompute.teacher.transformers_teacher.load_model", refuse)
    with pytest.raises(IdentityError, match=r"capture\.top_k is 8 there, but 4 here"):
        precompute(config_for(teacher, tmp_path, top_k=4))


def test_the_background_thread_raises_what_went_wrong_in_it():
    def fail():
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"), background_writer() as behind:
        behind(fail)
    done = []
    with background_writer() as behind:
        for n in range(5):
            behind(lambda n=n: done.append(n))
    assert done == list(range(5))
