"""The fast paths of reading give what the plain ones give."""

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import zarr
from helpers import stores
from hypothesis import given, settings
from hypothesis import strategies as st

from caskd.store.cells import MAX_CODE
from caskd.store.corpus import joined_row_positions, logit_positions, row_labels
from caskd.store.corpus.alignment import row_positions
from caskd.store.errors import CorruptError
from caskd.store.format import TOPK, compact_encoding
from caskd.store.read import TeacherStore, arrays
from caskd.store.read.chunk_cache import ChunkCache, Pieces, split_at_chunks


@pytest.fixture(scope="module", params=["compact", "exact"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TeacherStore:
    root = tmp_path_factory.mktemp("store") / "s"
    return stores.make_store(root, num=300, shard_rows=64, encoding=request.param)


def by_zarr(store: TeacherStore, name: str) -> np.ndarray:
    """A row field for the whole store through zarr-python, by the words of the format's page."""
    group = zarr.open_group(store.root / "data.zarr", mode="r", zarr_format=3)
    if name in group:
        return group[name][...]
    kept = np.arange(store.spec.top_k) < group["num_kept"][...][:, None]
    if name == "topk_ids":
        orders = group["id_order"][...].reshape(-1, store.spec.vocab_size)
        codes, which = group["topk_id_codes"][...], group["topk_id_order"][...][:, None]
        return np.where(kept, orders[which, codes], 0)
    x, turn = group["topk_logit_steps"][...].cumsum(1).astype(np.float64), 4 / 512
    near = 2 * np.log(np.clip(1 - x / 1024, turn, 1))
    far = 2 * np.log(turn) - (x - 1024 * (1 - turn)) / 4
    log_p = np.where(x < 1024 * (1 - turn), near, far)
    return np.where(kept, log_p + group["logsumexp"][...][:, None], -np.inf)


@pytest.mark.parametrize("cache_bytes", [1, 256 << 20])
def test_any_examples_in_any_order_are_what_zarr_reads(
    store: TeacherStore, cache_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrays, "CACHE_BYTES", cache_bytes)
    store, rng = TeacherStore.open(store.root), np.random.default_rng(0)
    whole = {name: by_zarr(store, name) for name in TOPK.fields}
    index = store.index
    for size in (1, 7, 300, 700):
        chosen = rng.integers(0, len(store), size)
        for examples in (chosen, np.sort(chosen)):
            batch = store.read(examples)
            rows = np.concatenate(
                [np.arange(index.row_count[e]) + index.row_start[e] for e in examples]
            ).astype(np.int64)
            for name, values in whole.items():
                found = batch.column(name)
                if name == "topk_logits":
                    np.testing.assert_allclose(found, values[rows], rtol=2e-6)
                else:
                    np.testing.assert_array_equal(found, values[rows], err_msg=name)


def test_positions_and_labels_are_those_of_each_example_alone(store: TeacherStore) -> None:
    chosen = np.random.default_rng(1).integers(0, len(store), 60)
    batch = store.read(chosen, fields=())
    for i in range(len(chosen)):
        tokens = slice(*batch.token_offsets[i : i + 2])
        rows = slice(*batch.row_offsets[i : i + 2])
        ids, mask = batch.token_ids[tokens], batch.is_response[tokens]
        np.testing.assert_array_equal(batch.logit_positions[rows], logit_positions(mask))
        np.testing.assert_array_equal(batch.labels[rows], row_labels(ids, mask))


@settings(max_examples=200)
@given(lengths=st.lists(st.integers(0, 5), max_size=8), masks=st.binary(min_size=40, max_size=40))
def test_joined_positions_are_those_of_each_example(lengths: list[int], masks: bytes) -> None:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    mask = np.frombuffer(masks, np.uint8)[: offsets[-1]] % 2
    wanted = [row_positions(mask[a:b]) + a for a, b in pairwise(offsets)]
    found = joined_row_positions(mask, offsets)
    np.testing.assert_array_equal(found, np.concatenate([np.zeros(0, np.int64), *wanted]))


@settings(max_examples=200)
@given(
    runs=st.lists(st.tuples(st.integers(0, 90), st.integers(0, 30)), max_size=9),
    chunk=st.integers(1, 13),
    slots=st.integers(1, 4),
)
def test_pieces_put_together_are_the_runs(
    runs: list[tuple[int, int]], chunk: int, slots: int
) -> None:
    values = np.arange(130)
    padded = np.concatenate([values, np.full(chunk, -1)])

    def decode(number: int, out: np.ndarray) -> None:
        out[:] = padded[number * chunk : (number + 1) * chunk]

    cache = ChunkCache(slots, (chunk,), "int64", decode)
    starts, counts = np.array(runs, np.int64).reshape(-1, 2).T
    parts = []
    for pieces in split_at_chunks(starts, counts, chunk).groups(slots):
        assert len(pieces.chunks) <= slots
        parts.append(np.empty(pieces.counts.sum(), np.int64))
        cache.take(pieces, parts[-1])
    wanted = [values[start : start + count] for start, count in runs]
    found = np.concatenate([np.zeros(0, np.int64), *parts])
    np.testing.assert_array_equal(found, np.concatenate([np.zeros(0, np.int64), *wanted]))


def test_runs_that_follow_each_other_are_one_piece() -> None:
    pieces = split_at_chunks(np.array([5, 8, 8, 20]), np.array([3, 0, 4, 2]), 100)
    assert pieces.starts.tolist() == [5, 20]
    assert pieces.counts.tolist() == [7, 2]


def test_the_cache_decodes_a_chunk_once_until_others_push_it_out() -> None:
    decoded: list[int] = []

    def decode(number: int, out: np.ndarray) -> None:
        decoded.append(number)
        if number == 9:
            raise CorruptError("damaged")
        out[:] = number

    cache = ChunkCache(2, (4,), "int64", decode)
    assert [int(cache.get(n)[0]) for n in (1, 2, 1, 3, 1, 2)] == [1, 2, 1, 3, 1, 2]
    assert decoded == [1, 2, 3, 2]
    for _ in range(3):
        with pytest.raises(CorruptError):
            cache.get(9)
    out = np.empty(2, np.int64)
    cache.take(Pieces([5, 6], np.array([0, 1]), np.array([3, 0]), np.array([1, 1])), out)
    assert out.tolist() == [5, 6]


@pytest.mark.parametrize("rows", [1, 3, 4, 512])
def test_four_sums_at_a_time_are_what_one_at_a_time_gives(rows: int) -> None:
    rng = np.random.default_rng(rows)
    steps = rng.integers(0, MAX_CODE // 64, (64, rows)).astype(np.uint16).T
    kept = rng.integers(0, 65, rows).astype(np.uint16)
    logsumexp = rng.normal(size=rows).astype(np.float32)
    found = np.empty((rows, 64), np.float32)
    stored = {"steps": steps, "logsumexp": logsumexp}
    compact_encoding.decode_logits(stored, "steps", kept, found)
    table = compact_encoding.LOG_PROBABILITIES[steps.cumsum(1)] + logsumexp[:, None]
    wanted = np.where(np.arange(64) < kept[:, None], table, -np.inf)
    np.testing.assert_array_equal(found, wanted)


def test_threads_may_read_one_store(store: TeacherStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "CACHE_BYTES", 1)
    shared, rng = TeacherStore.open(store.root), np.random.default_rng(2)
    orders = [rng.permutation(len(store)) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda order: shared.read(order).column("topk_ids"), orders))
    for order, ids in zip(orders, found, strict=True):
        np.testing.assert_array_equal(ids, store.read(order).column("topk_ids"))


def test_a_whole_store_and_its_parts_are_equal(tmp_path: Path) -> None:
    store = stores.make_store(tmp_path / "s", num=120, shard_rows=1024)
    whole = store.read(range(len(store)))
    for name in TOPK.fields:
        parts = [store.read([e], fields=(name,)).column(name) for e in range(len(store))]
        np.testing.assert_array_equal(np.concatenate(parts), whole.column(name))
