"""Damage is detected, reading never returns wrong values, and repair removes only damaged files."""

from collections.abc import Iterator
from pathlib import Path

import fault_damage
import fault_jobs
import fault_repair
import pytest

from caskd.store.errors import StoreNotFoundError, UnreadableError, UsageError
from caskd.store.inspect import diff_lines, diff_stores
from caskd.store.verify import repair_lines, repair_store, verify_store
from caskd.store.verify.verifier import sampled_units
from caskd.store.write import StoreWriter


@pytest.fixture
def where() -> Iterator[Path]:
    with fault_jobs.folder() as folder:
        yield folder


@pytest.mark.slow
def test_no_damage_is_silent(where: Path) -> None:
    counts = {"flips": 1000, "truncations": 200, "swaps": 50}
    for name, tally in fault_damage.damage(where, counts).items():
        assert tally.silent == [], name
        assert tally.count >= counts.get(name, 100)
        assert tally.notes["reading raises"] > tally.count / 2


def test_repair_takes_out_what_is_bad_and_a_rerun_gives_the_same_bytes(where: Path) -> None:
    tally = fault_repair.repairs(where, count=60)
    assert tally.silent == []
    assert tally.notes["1 shards again"] > 20


def test_repair_follows_no_link_and_removes_strays(where: Path) -> None:
    path = fault_damage.make(where / "store", "fitted2")
    wanted = fault_jobs.everything(path)
    outside = where / "outside"
    (path / "data.zarr" / "argmax" / "c").rename(outside)
    (path / "data.zarr" / "argmax" / "c").symlink_to(outside)
    (path / "commits" / "00009.json").write_text("{}")
    before = fault_jobs.everything(path)
    with pytest.raises(UnreadableError, match=r"nothing was changed.*data\.zarr/argmax/c"):
        repair_store(path)  # what lies behind the link may be intact
    assert fault_jobs.everything(path) == before
    (path / "data.zarr" / "argmax" / "c").unlink()
    report = repair_store(path)
    assert report.unsealed
    assert len(list(outside.iterdir())) == 4
    assert "no longer sealed" in repair_lines("S", report)[-1]
    fault_jobs.job(path)
    assert fault_jobs.everything(path) == wanted
    assert repair_lines("S", repair_store(path)) == ["S: nothing to repair"]
    with pytest.raises(StoreNotFoundError):
        repair_store(where / "nothing")


def test_a_sample_reads_a_part_and_finds_what_is_in_it(where: Path) -> None:
    path = fault_damage.make(where / "store", "compact")
    units = ["plan", "pilot", *(f"{n:05d}" for n in range(100))]
    chosen = sampled_units(units, 0.05, seed=1)
    assert len(chosen) == 7
    assert chosen[:2] == ["plan", "pilot"]
    assert chosen == sampled_units(units, 0.05, seed=1) != sampled_units(units, 0.05, seed=2)
    assert verify_store(path, sample=0.3, full=True).ok
    assert verify_store(path, sample=0.3).num_bytes < verify_store(path).num_bytes
    shard = path / "data.zarr" / "argmax" / "c" / "2"
    shard.write_bytes(shard.read_bytes()[::-1])
    assert {verify_store(path, sample=0.25, seed=seed).ok for seed in range(12)} == {True, False}
    with pytest.raises(UsageError, match=r"--sample 150.*at most 100 %"):
        verify_store(path, sample=1.5)


def test_diff_names_fields_texts_and_rows(where: Path) -> None:
    from helpers import stores

    path = fault_damage.make(where / "a", "exact")
    same = fault_damage.make(where / "same", "exact")
    assert diff_lines(diff_stores(path, same)) == ["no difference: 106 rows"]
    noisy = diff_stores(path, fault_damage.make(where / "noisy", "exact", noise=1e-3))
    assert not noisy.same
    assert noisy.identity == noisy.geometry == []
    assert noisy.rows.keys() == {"topk_logits", "logsumexp", "label_logit"}
    assert noisy.largest["logsumexp"] == pytest.approx(1e-3, rel=0.01)
    assert noisy.first_row == (0, 0)
    other = stores.make_store(where / "other", seed=1, top_k=3, num=12)
    found = diff_stores(path, other.root)
    assert ("capture.top_k", 4, 3) in found.identity
    assert ("num_examples", 20, 12) in found.geometry
    assert found.num_texts == 11
    assert found.first_text == 0
    assert any("texts: 11 examples differ" in line for line in diff_lines(found))


def test_a_seal_that_says_other_totals_is_taken_away_and_made_again(where: Path) -> None:
    path = fault_damage.make(where / "store", "compact")
    wanted = (path / "seal.json").read_bytes()
    (path / "seal.json").write_bytes(wanted.replace(b'"num_rows": 106', b'"num_rows": 107'))
    assert not verify_store(path).ok
    report = repair_store(path)
    assert report.removed == ["seal.json", "commits/commits.sha256"]
    assert (report.unsealed, report.shards) == (True, [])
    StoreWriter(path).seal()
    assert (path / "seal.json").read_bytes() == wanted
