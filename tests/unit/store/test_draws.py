"""Sampled stores: draws go in, the same draws come out, and whatever shows a store shows them."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr
from helpers import sampled_stores, stores
from helpers.compact_stores import encoded, fit_orders
from hypothesis import given, settings
from hypothesis import strategies as st

from caskd.cli.store_pages import example_page
from caskd.store.cells import IdLists
from caskd.store.errors import CorruptError, UsageError
from caskd.store.format import FIELD_DTYPES, ROW_ENCODINGS, SAMPLED, layout
from caskd.store.format.codecs import decode_chunk, encode_chunk
from caskd.store.inspect import (
    card,
    diff_stores,
    example_json,
    info_text,
    measure_quality,
    store_info,
)
from caskd.store.verify import verify_store
from caskd.store.verify.rows import row_problems

V = 300
COMPACT = ROW_ENCODINGS["sampled", "compact"]
FITTED = ROW_ENCODINGS["sampled", "fitted2"]


def drawn(seed: int, num_rows: int, num_samples: int) -> dict[str, np.ndarray]:
    """Rows of draws; every fifth has none."""
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.full(V, 0.05), num_rows)
    counts = rng.multinomial(num_samples, p)
    counts[::5] = 0
    order = np.lexsort((np.broadcast_to(np.arange(V), counts.shape), -counts))[:, :num_samples]
    cells = np.take_along_axis(counts, order, axis=1)
    columns = {a.name: np.zeros(num_rows, FIELD_DTYPES[a.name]) for a in SAMPLED.columns}
    return {
        **columns,
        "sampled_ids": np.where(cells > 0, order, 0).astype(np.uint32),
        "sampled_counts": cells.astype(np.uint16),
        "num_kept": (cells > 0).sum(1).astype(np.uint16),
    }


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    num_samples=st.sampled_from([1, 2, 50, 200]),
    num_orders=st.sampled_from([1, 3]),
)
def test_draws_come_back_as_they_were(seed: int, num_samples: int, num_orders: int) -> None:
    rows = drawn(seed, 1024, num_samples)
    orders = fit_orders(rows["sampled_ids"], rows["num_kept"], V, num_orders)
    stored = encoded("sampled", rows, orders)
    for start in (0, 512):
        chunk = {name: values[start : start + 512] for name, values in stored.items()}
        for name in ("sampled_ids", "sampled_counts"):
            wanted = rows[name][start : start + 512]
            found = np.empty_like(wanted)
            COMPACT.decode(name, chunk, orders, found)
            np.testing.assert_array_equal(found, wanted)


def decoded(stored: dict[str, np.ndarray], k: int) -> dict[str, np.ndarray]:
    """The draws of a shard of the fitted encoding, chunk by chunk, with no help from a store."""
    lists = stored["sampled_id_lists"]
    table = np.empty(IdLists.table_size(lists.shape, V), np.uint32)
    FITTED.decode("sampled_id_table", stored, None, table)
    parts: dict[str, list[np.ndarray]] = {"sampled_ids": [], "sampled_counts": []}
    tables = {"sampled_id_lists", "sampled_id_common"}
    for start in range(0, len(stored["num_kept"]), 512):
        rows = slice(start, start + 512)
        chunk = {n: v if n in tables else v[rows] for n, v in stored.items()}
        for name, found in parts.items():
            out = np.empty((len(chunk["num_kept"]), k), FIELD_DTYPES[name])
            FITTED.decode(name, {**chunk, "sampled_id_table": table}, None, out)
            found.append(out)
    return {name: np.concatenate(found) for name, found in parts.items()}


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6), num_samples=st.sampled_from([1, 2, 50, 200]))
def test_fitted_draws_come_back_as_they_were(seed: int, num_samples: int) -> None:
    rows = drawn(seed, 1024, num_samples)
    found = decoded(FITTED.encode(rows, V), num_samples)
    for name, values in found.items():
        np.testing.assert_array_equal(values, rows[name])


@pytest.mark.parametrize("name", ["sampled_place_steps", "sampled_id_list"])
def test_places_and_lists_that_do_not_exist_are_refused(name: str) -> None:
    stored = FITTED.encode(drawn(0, 512, 8), V)
    stored[name] = stored[name].copy()
    stored[name].reshape(-1)[:3] = 2**32 - 1 if name == "sampled_place_steps" else 99
    with pytest.raises(CorruptError, match=name):
        decoded(stored, 8)


@pytest.mark.parametrize("name", ["sampled_place_steps", "sampled_place_counts", "num_kept"])
def test_draws_of_the_next_cell_or_row_are_other_draws(name: str) -> None:
    rows = drawn(0, 1024, 20)
    stored = FITTED.encode(rows, V)
    moved = np.roll(stored[name].reshape(-1), 1).reshape(stored[name].shape)
    try:
        found = decoded({**stored, name: moved}, 20)
    except CorruptError:
        return
    assert any(not np.array_equal(found[field], rows[field]) for field in found)


@pytest.mark.parametrize("used", [0, 1, 700, 1000])
def test_zeros_behind_cost_nothing_and_any_pcodec_reads_a_ragged_chunk(used: int) -> None:
    values = np.zeros((20, 50), np.uint32)
    values.reshape(-1)[:used] = np.random.default_rng(0).integers(1, 5000, used)
    data = encode_chunk("ragged", values)
    np.testing.assert_array_equal(decode_chunk("packed", data, "uint32", values.shape), values)
    assert len(data) < 100 + 2 * used
    assert layout.chain_metadata("ragged", "uint32") == layout.chain_metadata("packed", "uint32")


def test_positions_beyond_the_vocabulary_are_damage() -> None:
    rows = drawn(0, 64, 8)
    orders = fit_orders(rows["sampled_ids"], rows["num_kept"], V, 1)
    stored = encoded("sampled", rows, orders)
    stored["sampled_place_steps"].reshape(-1)[:3] = V - 1
    with pytest.raises(CorruptError, match=f"sampled_place_steps .*at most {V - 1}"):
        COMPACT.decode("sampled_ids", stored, orders, np.empty_like(rows["sampled_ids"]))


@pytest.mark.parametrize("num_samples", [1, 20])
@pytest.mark.parametrize("encoding", ["exact", "compact", "fitted2"])
def test_a_store_holds_the_draws_of_each_row(
    tmp_path: Path, encoding: str, num_samples: int
) -> None:
    store = sampled_stores.make_store(tmp_path / "s", encoding=encoding, num_samples=num_samples)
    assert store.spec.kind == "sampled"
    batch = store.read(range(len(store)))
    for i, example in enumerate(stores.examples()):
        rows = slice(batch.row_offsets[i], batch.row_offsets[i + 1])
        labels = example.token_ids[np.flatnonzero(example.is_response)]
        logits = stores.logits_of(i, len(labels))
        wanted = sampled_stores.row_fields(i, logits, labels, num_samples)
        assert {*wanted} == {*store.row_fields}
        for name, values in wanted.items():
            np.testing.assert_array_equal(batch.column(name)[rows], values, err_msg=name)
    assert batch.topk_ids is None
    assert batch.tail_mass is None
    assert not verify_store(store.root, full=True).problems
    group = zarr.open_group(store.root / "data.zarr", mode="r", zarr_format=3)
    for array in store.spec.row_layouts():
        assert group[array.name][...].dtype == array.dtype


def test_a_field_of_the_other_kind_is_refused(tmp_path: Path) -> None:
    store = sampled_stores.make_store(tmp_path / "s")
    with pytest.raises(
        UsageError, match=r"'topk_ids'.*sampled store.*expected some of sampled_ids"
    ):
        store.read([0], fields=("topk_ids",))
    other = stores.make_store(tmp_path / "t")
    with pytest.raises(UsageError, match=r"'sampled_ids'.*expected some of topk_ids"):
        other.read([0], fields=("sampled_ids",))


def test_rows_that_contradict_themselves_or_are_shifted_are_noticed(tmp_path: Path) -> None:
    store = sampled_stores.make_store(tmp_path / "s", num=200, shard_rows=512)
    batch = store.read(range(len(store)))
    assert row_problems(batch, store.spec) == []
    ids, counts = batch.column("sampled_ids"), batch.column("sampled_counts")
    kept = batch.column("num_kept")

    def problem(**changes: np.ndarray) -> str:
        found = row_problems(replace(batch, **changes), store.spec)
        assert found
        return found[0]

    more = counts.copy()
    more[0, 0] += 1
    assert "add up" in problem(sampled_counts=more)
    twice = ids.copy()
    twice[kept > 1, 1] = twice[kept > 1, 0]
    assert "twice" in problem(sampled_ids=twice)
    rising = counts.copy()
    rising[0, : kept[0]] = rising[0, : kept[0]][::-1]
    assert "order of count" in problem(sampled_counts=rising)
    assert "num_kept" in problem(num_kept=np.minimum(kept, 1).astype(np.uint16))
    assert "label_rank" in problem(argmax=np.roll(batch.column("argmax"), 1))
    moved = {name: np.roll(values, 1, axis=0) for name, values in (
        ("sampled_ids", ids), ("sampled_counts", counts), ("num_kept", kept),
    )}  # fmt: skip
    assert "as often as their probabilities" in problem(**moved)


def test_info_show_card_and_quality_say_what_it_is(tmp_path: Path) -> None:
    store = sampled_stores.make_store(tmp_path / "s")
    info = json.loads(json.dumps(store_info(store.root)))
    assert (info["kind"], info["num_samples"], info["top_k"]) == ("sampled", 20, None)
    assert {*info["fields"]} >= {"sampled_ids", "sampled_counts"}
    assert "20 draws from all 30 tokens" in info_text(info)
    first = example_json(store, 0)["rows"][0]
    batch = store.read([0])
    assert first["choices"][0]["id"] == batch.column("sampled_ids")[0, 0]
    assert first["choices"][0]["probability"] == batch.column("sampled_counts")[0, 0] / 20
    assert first["tail_mass"] is None
    assert b"distinct ids" in example_page(store, 0)
    quality = measure_quality(store)
    assert quality.mean_tail_mass is None
    text = card(store.spec, store.seal, quality)
    assert "20 draws from all 30 tokens" in text
    assert "tail mass" not in text
    plain = stores.make_store(tmp_path / "t", encoding="exact")
    assert quality.perplexity == pytest.approx(measure_quality(plain).perplexity, rel=1e-6)


def test_diff_compares_what_two_kinds_share(tmp_path: Path) -> None:
    sampled_stores.make_store(tmp_path / "s")
    stores.make_store(tmp_path / "t", encoding="exact")
    found = diff_stores(tmp_path / "s", tmp_path / "t")
    assert ("capture.kind", "sampled", "topk") in found.identity
    assert {*found.rows} == {"num_kept"}
    sampled_stores.make_store(tmp_path / "exact", encoding="exact")
    same_rows = diff_stores(tmp_path / "s", tmp_path / "exact")
    assert [name for name, *_ in same_rows.identity] == ["encoding"]
    assert not same_rows.rows
