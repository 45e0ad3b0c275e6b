"""The forecast: batches as the capture makes them, bytes as the encoder makes them."""

import json

import numpy as np
import pytest
from helpers.captures import RECORDS, config_for
from helpers.tiny import ragged_records, save_tiny

from caskd.cli.main import main
from caskd.precompute import precompute
from caskd.precompute.planning import forecast, probe
from caskd.precompute.planning.plan_report import plan_lines
from caskd.precompute.workers.fill import TokenBudget, fill_shard
from caskd.store.format import ROW_ENCODINGS, TOPK
from caskd.store.read import TeacherStore
from caskd.store.write import StoreWriter


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("models") / "big")


@pytest.fixture(scope="module")
def store(teacher, tmp_path_factory):
    folder = tmp_path_factory.mktemp("capture")
    return precompute(config_for(teacher, folder, ragged_records(300, seed=1), shard_rows=512))


class Recording:
    """A teacher that keeps the indices of the examples of each batch."""

    def __init__(self):
        self.batches = []

    def rows(self, examples):
        self.batches.append([example.index for example in examples])
        return {"num_kept": np.ones(sum(example.row_count for example in examples), np.uint16)}


@pytest.mark.parametrize("budget", [1, 90, 10_000])
def test_batches_are_those_of_the_capture(store, budget):
    index, shard_rows = store.index, store.spec.shard_rows
    for shard in range(store.spec.num_shards):
        teacher = Recording()
        rows = {"num_kept": np.ones(shard_rows, np.uint16)}
        fill_shard(StoreWriter(store.root).shard(shard), teacher, rows, TokenBudget(budget), print)
        chosen = np.flatnonzero(index.row_start // shard_rows == shard)
        planned = list(forecast.planned_batches(index.token_count, chosen, budget))
        assert [batch.examples.tolist() for batch in planned] == teacher.batches
        for batch in planned:
            assert batch.longest == index.token_count[batch.examples].max()
            assert batch.num_tokens == len(batch.examples) * batch.longest


@pytest.mark.parametrize("budget", [40, 400, 100_000])
def test_strata_hold_all_of_the_work_once(store, budget):
    index = store.index
    parts = index.token_count, index.row_start, index.row_count, store.spec.shard_rows
    strata = forecast.strata_of(*parts, budget)
    assert 1 <= len(strata) <= forecast.NUM_STRATA
    seen = np.concatenate([batch.examples for stratum in strata for batch in stratum.batches])
    assert sorted(seen.tolist()) == np.flatnonzero(index.row_count).tolist()
    total = sum(batch.num_tokens for stratum in strata for batch in stratum.batches)
    assert sum(stratum.num_tokens for stratum in strata) == pytest.approx(total)
    longest = [batch.longest for stratum in strata for batch in stratum.batches]
    assert longest == sorted(longest, reverse=True)


def test_time_is_exact_where_it_depends_on_tokens_of_a_stratum_alone(store):
    index = store.index
    parts = index.token_count, index.row_start, index.row_count, store.spec.shard_rows
    strata = forecast.strata_of(*parts, 400)
    rates = np.linspace(1e-3, 2e-3, len(strata))
    spent = sum(
        rate * batch.num_tokens
        for rate, stratum in zip(rates, strata, strict=True)
        for batch in stratum.batches
    )
    assert forecast.forward_seconds(strata, list(rates)) == pytest.approx(spent)


def test_of_many_shards_some_stand_for_all(monkeypatch, store):
    index = store.index
    parts = index.token_count, index.row_start, index.row_count
    whole = forecast.strata_of(*parts, 64, 200)
    monkeypatch.setattr(forecast, "MAX_SHARDS", 10)
    some = forecast.strata_of(*parts, 64, 200)
    assert sum(len(s.batches) for s in some) < sum(len(s.batches) for s in whole)
    work = [sum(stratum.num_tokens for stratum in strata) for strata in (some, whole)]
    assert work[0] == pytest.approx(work[1], rel=0.15)


@pytest.mark.parametrize("encoding", ["exact", "fitted2"])
def test_bytes_of_a_capture_are_foreseen(teacher, tmp_path, monkeypatch, capsys, encoding):
    """Its own teacher on a part of the rows; sizes of stores as small as this one vary more."""
    monkeypatch.setattr(probe, "PROBE_ROWS", 4000)
    records = ragged_records(1500, seed=2)
    config = config_for(teacher, tmp_path, records, shard_rows=2048, encoding=encoding)
    said = forecast_of(config, capsys)
    store = precompute(config)
    taken = sum(store.seal["bytes"].values())
    assert said["bytes"] == pytest.approx(taken, rel=0.1)
    assert said["seconds"] == max(said["forward_seconds"], said["encode_seconds"])
    assert 1000 < said["num_rows"] < store.spec.num_rows


def forecast_of(config, capsys, **more):
    words = ["plan", "--teacher", config.teacher, "--data", *config.data, "--store", config.store]
    options = {
        "--top-k": config.top_k, "--shard-rows": config.shard_rows, "--device": "cpu",
        "--encoding": config.encoding, "--token-budget": config.token_budget,
    }  # fmt: skip
    for flag, value in options.items():
        words += [flag, str(value)]
    assert main([*words, "--probe", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert plan_lines(facts)
    return facts["forecast"]


def test_a_probe_fills_no_shard_and_a_dry_run_leaves_nothing(teacher, tmp_path, capsys):
    config = config_for(teacher, tmp_path, RECORDS)
    words = [
        "plan", "--teacher", config.teacher, "--data", *config.data, "--store", config.store,
        "--top-k", "8", "--shard-rows", "128", "--device", "cpu", "--probe",
    ]  # fmt: skip
    assert main([*words, "--dry-run"]) == 0
    assert not (tmp_path / "store").exists()
    assert main(words) == 0
    said = capsys.readouterr().out
    assert TeacherStore.open(config.store, allow_unsealed=True).num_committed_shards() == 0
    for part in ("rows/s", "of memory in this process", "bytes per row", "students"):
        assert said.count(part) == 2


def test_without_a_probe_no_weight_is_read(teacher, tmp_path, monkeypatch):
    def refuse(*args, **options):
        raise AssertionError("the teacher was loaded")

    monkeypatch.setattr("caskd.precompute.teacher.transformers_teacher.load_model", refuse)
    config = config_for(teacher, tmp_path)
    words = ["plan", "--teacher", config.teacher, "--data", *config.data, "--store", config.store]
    assert main([*words, "--top-k", "8"]) == 0
    with pytest.raises(AssertionError, match="was loaded"):
        main([*words, "--top-k", "8", "--probe"])


def test_the_bracket_without_a_probe_holds_the_measured_stores():
    """Row arrays of `benchmarks/results/store_fitted.csv` and `store_encoding.csv`."""
    spec = type("Spec", (), {
        "num_rows": 100_000, "num_cells": 64,
        "identity": {"capture": {"min_mass": 1.0}},
    })  # fmt: skip
    for encoding, measured in (("fitted2", (91.5, 107.3)), ("exact", (310.0, 319.5))):
        spec.row_encoding = ROW_ENCODINGS["topk", encoding]
        low, high = forecast.bytes_bracket(spec, 0)
        assert low < 100_000 * measured[0]
        assert high > 100_000 * measured[1]


@pytest.mark.parametrize(("forward", "encoding"), [(40.0, 10.0), (10.0, 40.0)])
def test_the_slower_of_forward_and_encoding_sets_the_pace(forward, encoding):
    """Rows are encoded in the background."""
    assert forecast.capture_seconds(forward, encoding) == 40.0


def test_break_even():
    facts = forecast.break_even(capture_seconds=3780.0, online_seconds=3600.0)
    assert facts["student_epochs"] == 2
    assert facts["cask_hours"] == 1.05
    assert facts["online_hours"]["4"]["3"] == 12.0
    assert forecast.break_even(7300.0, 3600.0)["student_epochs"] == 3


@pytest.mark.parametrize("turns", [1, 2, 5, 40])
def test_turns_cover_a_range_evenly(turns):
    indices = sorted(probe._spread(turn, 1000) for turn in range(turns))
    gaps = np.diff([0, *indices, 1000])
    assert gaps.max() <= 1700 / (turns + 1) + 1
    assert 0 <= indices[0] <= indices[-1] < 1000


def test_a_part_of_a_batch_keeps_its_longest_example():
    batch = forecast.PlannedBatch(np.arange(100, 164), 64 * 50, 50)
    assert probe._subset(batch, 64 * 50, 3) is batch
    part = probe._subset(batch, 500, 7)
    assert (part.longest, part.num_tokens, part.examples[0]) == (50, 50 * len(part.examples), 100)
    assert 8 <= len(part.examples) <= 10
    assert probe._subset(batch, 10, 0).examples.tolist() == [100]


def test_encoded_bytes_are_what_a_store_of_the_same_rows_takes(store):
    rows = store.read(range(len(store)))
    fields = {name: getattr(rows, name) for name in TOPK.fields}
    sizes, _ = probe.encoded_bytes(store.spec, fields)
    taken = sum(store.seal["bytes"][name] for name in sizes)
    assert sum(sizes.values()) * store.spec.num_rows == pytest.approx(taken, rel=0.1)
    largest = max(sizes, key=lambda name: sizes[name])
    found = sizes[largest] * store.spec.num_rows
    assert found == pytest.approx(store.seal["bytes"][largest], rel=0.06)
