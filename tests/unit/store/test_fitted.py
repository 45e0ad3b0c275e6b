"""The fitted encoding of top-k rows: exact ids, a small KL, shards that need nothing else."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from helpers import stores
from helpers.fitted_rows import FITTED, SHARD_ROWS, K, V, decoded, toy_rows

from caskd.store.cells import (
    IdLists,
    ListPlaces,
    ListShape,
    fit_lists,
    from_front,
    ids_of_places,
    octaves,
    run_sums,
    to_front,
)
from caskd.store.errors import CorruptError
from caskd.store.format import ROW_ENCODINGS, layout, written_encodings
from caskd.store.format.codecs import Chain, chain_metadata, decode_chunk, encode_chunk
from caskd.store.read import StoreBatch, TeacherStore
from caskd.store.verify import verify_store


def log_p(rows: dict[str, np.ndarray]) -> np.ndarray:
    cells = np.arange(K) < rows["num_kept"][:, None]
    values = np.where(cells, rows["topk_logits"], 0).astype(np.float64)
    return np.where(cells, values - rows["logsumexp"][:, None], -np.inf)


def distribution(rows: dict[str, np.ndarray]) -> np.ndarray:
    """[N, k + 1] by ascending id, the tail last."""
    tail = rows["tail_mass"].astype(np.float64)[:, None]
    p = np.exp(log_p(rows))
    p *= (1 - tail) / np.maximum(p.sum(1, keepdims=True), 1e-300)
    cells = np.arange(K) < rows["num_kept"][:, None]
    order = np.argsort(np.where(cells, rows["topk_ids"], V), axis=1, kind="stable")
    return np.concatenate([np.take_along_axis(p, order, 1), tail], axis=1)


@pytest.mark.parametrize("scale", [0.0, 0.3, 3.0, 40.0])
def test_ids_are_exact_and_probabilities_close(scale: float) -> None:
    rows = toy_rows(0, scale)
    back = decoded(FITTED.encode(rows, V))
    for name in ("num_kept", "argmax", "label_rank"):
        np.testing.assert_array_equal(back[name], rows[name])
    np.testing.assert_array_equal(back["topk_ids"][:, 0], rows["topk_ids"][:, 0])
    cells = np.arange(K) < rows["num_kept"][:, None]
    sets = [np.sort(np.where(cells, r["topk_ids"], V), axis=1) for r in (rows, back)]
    np.testing.assert_array_equal(*sets)
    np.testing.assert_array_equal(back["topk_ids"][~cells], 0)
    np.testing.assert_array_equal(back["topk_logits"][~cells], -np.inf)
    p, q = distribution(rows)[:-40], distribution(back)[:-40]
    assert np.abs(p - q).max() < 2e-3
    kl = np.where(p > 0, p * np.log(np.maximum(p, 1e-300) / np.maximum(q, 1e-300)), 0).sum(1)
    assert kl.mean() < (1e-5 if scale else 3e-5)  # equal logits: a cell holds 1/700


def test_cells_behind_the_first_stand_by_value_and_then_by_id() -> None:
    back = decoded(FITTED.encode(toy_rows(1), V))
    ids, logits, kept = back["topk_ids"], back["topk_logits"], back["num_kept"]
    cells = np.arange(K) < kept[:, None]
    falling = logits[:, 1:-1] > logits[:, 2:]
    tied = logits[:, 1:-1] == logits[:, 2:]
    in_order = falling | (tied & (ids[:, 1:-1] < ids[:, 2:]))
    assert (tied & cells[:, 2:]).any()
    assert in_order[cells[:, 2:]].all()


def test_the_label_is_close_inside_the_cells_and_exact_outside() -> None:
    rows = toy_rows(2)
    back = decoded(FITTED.encode(rows, V))
    known = rows["num_kept"] > 0
    error = np.abs(
        (back["label_logit"].astype(np.float64) - back["logsumexp"])
        - (rows["label_logit"].astype(np.float64) - rows["logsumexp"])
    )
    inside = rows["label_rank"] < rows["num_kept"]
    assert 0 < (inside & known).sum() < known.sum()
    assert error[inside & known].max() <= 2.0**-8 + 1e-5
    assert error[~inside & known].max() <= 1e-5
    assert np.abs(back["logsumexp"] - rows["logsumexp"]).max() <= 1 / 32 + 1e-6


def test_filler_comes_back_as_filler() -> None:
    back = decoded(FITTED.encode(toy_rows(3), V))
    for name, values in back.items():
        assert (values[-40:] == (-np.inf if name == "topk_logits" else 0)).all(), name


def test_rows_of_unequal_length_leave_no_gaps() -> None:
    rng = np.random.default_rng(0)
    kept = rng.integers(0, 12, 50)
    cells = np.arange(11)[:, None] < kept
    values = np.where(cells, rng.integers(1, 9, cells.shape), 0)
    packed = to_front(values, cells, octaves(11))
    for start, stop in ((0, 1), (1, 2), (2, 4), (4, 8), (8, 11)):
        part = packed[start:stop].reshape(-1)
        amount = int(cells[start:stop].sum())
        assert (part[:amount] > 0).all()
        assert not part[amount:].any()
    np.testing.assert_array_equal(from_front(packed, cells, octaves(11)), values)


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_numbers_of_runs_are_those_that_one_cell_after_another_gives(dtype: type) -> None:
    rng = np.random.default_rng(0)
    steps = rng.integers(0, 50, (21, 33)).astype(dtype)
    tied = rng.random((21, 33)) < 0.6
    tied[0] = False
    wanted = steps.copy()
    for line in range(1, 21):
        for row in np.flatnonzero(tied[line]):
            wanted[line, row] += wanted[line - 1, row] + 1
    np.testing.assert_array_equal(run_sums(steps.copy(), tied), wanted)


def test_the_first_cell_is_stored_as_the_argmax_alone() -> None:
    rows = toy_rows(5)
    stored = FITTED.encode(rows, V)
    behind = np.maximum(rows["num_kept"].astype(int) - 1, 0)
    for start in range(0, SHARD_ROWS, 512):
        chunk = stored["topk_id_places"][start : start + 512].T.reshape(-1)
        assert not chunk[behind[start : start + 512].sum() :].any()
    stored["argmax"] = (stored["argmax"] + 1) % V
    ids = decoded(stored)["topk_ids"]
    known = rows["num_kept"] > 0
    np.testing.assert_array_equal(ids[known, 0], stored["argmax"][known])


def test_places_beyond_16_bits_come_back() -> None:
    vocab, rows = 70_000, toy_rows(6)
    rows["topk_ids"][:, 1:] += np.uint32(vocab - V)
    rows["topk_ids"][~(np.arange(K) < rows["num_kept"][:, None])] = 0
    back = decoded(FITTED.encode(rows, vocab), vocab)
    np.testing.assert_array_equal(
        np.sort(back["topk_ids"], axis=1), np.sort(rows["topk_ids"], axis=1)
    )


def test_new_stores_of_every_kind_have_the_fitted_or_the_exact_encoding() -> None:
    assert written_encodings() == ["fitted2", "exact"]
    kinds = {kind for kind, _ in ROW_ENCODINGS}
    assert {(kind, name) for kind in kinds for name in written_encodings()} <= {*ROW_ENCODINGS}


@pytest.mark.parametrize("chain", ["octaves", "ranks"])
def test_zarr_reads_chains_by_rank(chain: Chain) -> None:
    rng = np.random.default_rng(0)
    values = (rng.integers(0, 9, (64, 13)) * (np.arange(13) < 9)).astype(np.uint16)
    data = encode_chunk(chain, values)
    np.testing.assert_array_equal(decode_chunk(chain, data, "uint16", (64, 13)), values)
    from numcodecs.pcodec import PCodec

    flat = PCodec().decode(data[:-4], np.empty(values.size, np.uint16))
    np.testing.assert_array_equal(np.asarray(flat).reshape(13, 64).T, values)
    names = [codec["name"] for codec in chain_metadata(chain, "uint16")]
    assert names == ["transpose", "numcodecs.pcodec", "crc32c"]


def test_lists_hold_the_frequent_ids_of_groups() -> None:
    rng = np.random.default_rng(0)
    group = np.arange(2000) % 2
    ids = np.stack([rng.permutation(20) + 300 * g for g in group]).astype(np.uint32)
    shape = ListShape(2, 20, 100)
    lists, chosen = fit_lists(ids, np.full(2000, 20), V, shape, shape)
    assert (chosen[group == 0] == chosen[0]).all()
    assert (chosen[group == 1] == chosen[1]).all()
    assert chosen[0] != chosen[1]
    assert ListPlaces(lists).of(ids, chosen).max() < 20
    steps = lists.stored(shape)
    again = IdLists.from_stored(*steps, V)
    np.testing.assert_array_equal(again.lists, lists.lists)
    np.testing.assert_array_equal(again.common, lists.common)
    np.testing.assert_array_equal(np.sort(again.common), np.arange(V))


def test_lists_of_a_shard_of_filler_are_as_short_as_its_rows_need() -> None:
    ids = np.arange(200, dtype=np.uint32).reshape(10, 20)[::-1] + np.uint32(300)
    lists, group = fit_lists(ids, np.full(10, 20), V, ListShape(4, 64, 256), ListShape(1, 16, 40))
    assert not group.any()
    np.testing.assert_array_equal(lists.lists[1:], np.tile(np.arange(64), (3, 1)))
    assert sorted(lists.lists[0].tolist()) == list(range(64))  # each position once
    places = ListPlaces(lists).of(ids, group)
    table, shape = lists.table(), lists.lists.shape
    np.testing.assert_array_equal(ids_of_places(places.T, group, table, shape).T, ids)


def test_tables_that_name_no_id_are_refused() -> None:
    shape = ListShape(2, 20, 100)
    ids = np.arange(200, dtype=np.uint32).reshape(10, 20)
    lists, _ = fit_lists(ids, np.full(10, 20), V, shape, shape)
    far, twice = lists.stored(shape), lists.stored(shape)
    far[0][0, 3] = V
    twice[1][0, 0] = twice[1][0, 1]
    for steps in (far, twice):
        with pytest.raises(CorruptError, match="lists of ids"):
            IdLists.from_stored(*steps, V)


def same(ours: StoreBatch, theirs: StoreBatch) -> bool:
    return all(
        np.array_equal(getattr(ours, field.name), getattr(theirs, field.name))
        for field in dataclasses.fields(StoreBatch)
    )


@pytest.mark.parametrize("shard_rows", [32, 1024])
def test_a_store_has_format_2_no_pilot_and_reads_in_any_order(
    tmp_path: Path, shard_rows: int
) -> None:
    make = {"encoding": "fitted2", "num": 16, "top_k": 20, "ragged": True}
    store = stores.make_store(tmp_path / "s", shard_rows=shard_rows, **make)  # type: ignore[arg-type]
    assert store.spec.format_version == 2
    assert store.id_order is None
    assert not (store.root / "commits" / "pilot.json").exists()
    assert not verify_store(store.root, full=True).problems
    whole = store.read(range(16))
    for example in (15, 3, 0):
        fresh = TeacherStore.open(store.root)
        one, span = fresh.read([example]), slice(*whole.row_offsets[example : example + 2])
        for name in store.row_fields:
            np.testing.assert_array_equal(one.column(name), whole.column(name)[span], err_msg=name)
    again = stores.make_store(tmp_path / "t", shard_rows=shard_rows, **make)  # type: ignore[arg-type]
    assert stores.tree(again.root) == stores.tree(store.root)
    assert same(again.read(range(16)), whole)


@pytest.mark.parametrize("top_k", [1, 2, len(stores.VOCAB)])
def test_a_shard_of_one_row_has_the_values_of_its_row(tmp_path: Path, top_k: int) -> None:
    one = [e for e in stores.examples(60, longest=3) if e.is_response[1:].sum() == 1][:8]
    found = []
    for encoding in ("exact", "fitted2"):
        made = stores.identity(top_k, encoding)
        stores.plan_store(tmp_path / encoding, made, one, shard_rows=1, vocab=stores.VOCAB)
        stores.fill(tmp_path / encoding).seal()
        assert not verify_store(tmp_path / encoding, full=True).problems
        found.append(TeacherStore.open(tmp_path / encoding).read(range(len(one))))
    log_p = [batch.column("label_logit") - batch.column("logsumexp") for batch in found]
    np.testing.assert_allclose(log_p[1], log_p[0], atol=2.0**-8 + 1e-5)
    tails = [np.sqrt(batch.column("tail_mass")) for batch in found]
    np.testing.assert_allclose(tails[1], tails[0], atol=2e-3)


def test_a_shard_needs_nothing_of_another(tmp_path: Path) -> None:
    plan = tmp_path / "s"
    made = stores.identity(4, "fitted2")
    stores.plan_store(plan, made, stores.examples(40), shard_rows=32, vocab=stores.VOCAB)
    stores.fill(plan, only=[3])
    store = TeacherStore.open(plan, allow_unsealed=True)
    inside = np.flatnonzero((store.index.row_start // 32 == 3) & (store.row_counts() > 0))
    assert store.read(inside).num_rows == store.row_counts()[inside].sum()


def test_more_rows_share_more_and_longer_lists() -> None:
    shapes = [ListShape.of(rows, 49_152) for rows in (64, 2048, 16_384, 65_536)]
    assert [shape.num_lists for shape in shapes] == sorted(shape.num_lists for shape in shapes)
    assert shapes[0].num_lists == 1
    assert shapes[-1] == ListShape(64, 2048, 16_384)
    assert ListShape.of(65_536, 100) == ListShape(64, 100, 100)
    names = [array.name for array in FITTED.tables(49_152, 65_536)]
    assert names == ["topk_id_lists", "topk_id_common"]
    assert layout.row_metadata(FITTED.tables(100, 8), 3).keys() == {
        f"data.zarr/{name}/zarr.json" for name in names
    }
