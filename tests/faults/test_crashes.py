"""Crash safety: kills, failing disks, power cuts, races; the large counts run nightly."""

from collections.abc import Iterator
from pathlib import Path

import fault_disk
import fault_jobs
import fault_kills
import fault_power
import fault_races
import pytest

from caskd.store.commits import commit_record, publish
from caskd.store.errors import IncompleteError
from caskd.store.format import STAGING
from caskd.store.read import TeacherStore


@pytest.fixture
def where() -> Iterator[Path]:
    with fault_jobs.folder() as folder:
        yield folder


def test_killed_anywhere_a_rerun_gives_the_same_bytes(where: Path) -> None:
    tally = fault_kills.kill_loop(where, count=60)
    assert tally.silent == []
    assert tally.count == 60
    assert len(tally.notes) >= 24


def test_a_call_that_fails_gives_one_clear_line_and_a_rerun_the_same_bytes(where: Path) -> None:
    tally = fault_disk.error_sweep(where, count=40)
    assert (tally.count, tally.silent) == (40, [])


@pytest.mark.skipif(not fault_disk.can_mount(), reason="no user namespace with mounts here")
def test_a_full_or_read_only_disk_is_refused_clearly() -> None:
    found = fault_disk.in_namespace([*range(64 << 10, 448 << 10, 32 << 10)])
    assert found["silent"] == []
    assert found["notes"]["full"] >= 4
    assert found["notes"]["large enough"] >= 1
    assert len(found["read_only"]) == 2
    for said in found["read_only"]:
        assert "cannot write" in said
        assert "Read-only file system" in said


def test_what_was_committed_survives_a_power_cut(where: Path) -> None:
    tally = fault_power.power_cuts(where, count=200)
    assert tally.silent == []
    assert len(tally.notes) >= 6


def test_bytes_that_were_not_synced_are_lost_by_the_model(
    where: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model of a power cut detects a missing sync."""
    from caskd.store.io import files

    monkeypatch.setattr(files, "sync_ancestors", lambda root, names: None)
    assert fault_power.power_cuts(where, count=60).silent


def test_eight_workers_commit_each_shard_once(where: Path) -> None:
    tally = fault_races.schedules(where, count=20)
    assert tally.silent == []
    assert tally.notes["shard.won"] == 20 * 4
    assert tally.notes["shard.lost"] > 0


def test_of_two_creators_one_wins(where: Path) -> None:
    tally = fault_races.creators(where, count=50)
    assert tally.silent == []
    assert {*tally.notes} == {"winner 0", "winner 1"}


def test_a_worker_that_wakes_up_after_the_seal_changes_nothing(where: Path) -> None:
    assert fault_races.latecomers(where).silent == []


def test_a_file_that_is_still_in_staging_is_not_yet_there_rather_than_damage(where: Path) -> None:
    path = where / "store"
    fault_jobs.plan(path)
    record = commit_record.read_record(path, "plan")
    name = "data.zarr/token_start/zarr.json"
    staged = path / STAGING / record.digest
    staged.mkdir(parents=True)
    (path / name).rename(staged / publish.staged_name(name))
    with pytest.raises(IncompleteError, match="still in staging"):
        TeacherStore.open(path, allow_unsealed=True).read([0])
    fault_jobs.job(path)
    assert fault_jobs.everything(path) == fault_jobs.reference(where)
