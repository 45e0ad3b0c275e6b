"""Progress of a capture, read from its store."""

from pathlib import Path

import pytest
from helpers import stores

from caskd.cli.store_commands import InfoConfig, info_command
from caskd.store.inspect import CaptureStatus, info_text, store_info, watch
from caskd.store.inspect.capture_progress import progress_note, shards_text
from caskd.store.read import TeacherStore
from caskd.store.write import StoreWriter, plan_store


@pytest.fixture
def planned(tmp_path):
    path = tmp_path / "store"
    plan_store(path, stores.identity(), stores.examples(), shard_rows=32, vocab=stores.VOCAB)
    return path


def status_of(path):
    status = CaptureStatus(path, TeacherStore.open(path, allow_unsealed=True).spec)
    status.refresh()
    return status


def test_a_status_counts_committed_rows_and_reads_only_new_records(planned, monkeypatch):
    status = status_of(planned)
    assert (status.num_rows, status.num_committed_shards) == (0, 0)
    stores.fill(planned, only=[1])
    in_shard = StoreWriter(planned).shard(1).num_rows
    assert status.refresh() == in_shard
    assert status.refresh() == 0
    stores.fill(planned)
    assert status.refresh() == status.spec.num_rows - in_shard
    assert status.statuses == {"ok": 18, "empty": 2}
    assert "2 empty" in progress_note(status)
    assert status.shards_left == []
    assert "sealing" in progress_note(status)


def test_watching_ends_with_the_seal_and_prints_the_summary(planned, capsys):
    spec = TeacherStore.open(planned, allow_unsealed=True).spec
    steps = iter([lambda: stores.fill(planned, only=[0]), lambda: stores.fill(planned).seal()])
    watch(TeacherStore.open(planned, allow_unsealed=True), sleep=lambda seconds: next(steps)())
    assert next(steps, None) is None
    assert f"0 of {spec.num_shards} shards" in capsys.readouterr().out
    info_command(InfoConfig(str(planned), watch=True))
    said = capsys.readouterr()
    assert said.out.startswith("store     store (sealed)")
    assert said.err == ""


def test_a_line_a_minute_where_there_is_no_terminal(planned, capsys, monkeypatch):
    monkeypatch.setattr("caskd.store.io.console.SECONDS_BETWEEN_LINES", 0.0)
    done = iter([lambda: stores.fill(planned, only=[0]), lambda: stores.fill(planned).seal()])
    watch(TeacherStore.open(planned, allow_unsealed=True), sleep=lambda seconds: next(done)())
    first, last = capsys.readouterr().err.splitlines()
    assert "rows/s" in first
    assert "1 of" in first
    assert "sealing" in last


def test_failed_shards_are_the_uncommitted_ones(planned):
    writer = stores.fill(planned, only=[0, 1])
    writer.record_environment({"failed_shards": {"1": "RuntimeError", "2": "MemoryError"}}, "a")
    writer.record_environment({"failed_shards": {"2": "RuntimeError", "3": "KeyError"}}, "b")
    info = store_info(planned)
    assert info["failed_shards"] == [2, 3]
    assert "failed    2, 3; caskd precompute" in info_text(info)
    assert "20 ok" not in info_text(info)
    assert "so far" in info_text(info)
    assert progress_note(status_of(planned)).endswith("failed: 2, 3")
    stores.fill(planned).seal()
    assert store_info(planned)["failed_shards"] == []


@pytest.mark.parametrize(
    "content",
    [b"", b"[", b"[1]", b'"x"', b"{}", b'{"failed_shards": [2]}', b'{"failed_shards": 7}',
     b'{"failed_shards": {"x": 1, "-1": 1, "99": 1, "\\u00b2": 1}}', b"\xff", b"[" * 5000],
)  # fmt: skip
def test_a_refresh_survives_any_content_of_environment(planned, content):
    stores.fill(planned, only=[0])
    folder = Path(planned, "environment")
    folder.mkdir()
    (folder / "strange.json").write_bytes(content)
    (folder / "link.json").symlink_to("/dev/zero")
    assert set(status_of(planned).failed_shards()) <= {2}


def test_the_same_name_replaces_an_attempt(planned):
    writer = StoreWriter(planned)
    paths = {writer.record_environment({"outcome": n}, "one") for n in ("started", "done")}
    (path,) = paths
    assert '"done"' in path.read_text()


def test_many_shards_are_cut_short():
    assert shards_text(list(range(10))) == "0, 1, 2, 3, 4, 5, 6, 7 and 2 more"
