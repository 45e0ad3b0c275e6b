"""Stores of draws with a head: what goes in comes out, and whatever shows a store shows them."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr
from helpers import head_stores, sampled_stores, stores
from helpers.compact_stores import encoded, fit_orders
from helpers.head_stores import HEAD, NUM_SAMPLES

from caskd.store.cells import IdLists
from caskd.store.errors import CorruptError, UsageError
from caskd.store.exchange import export_store
from caskd.store.format import FIELD_DTYPES, ROW_ENCODINGS, StoreSpec
from caskd.store.inspect import card, diff_stores, example_json, info_text, store_info
from caskd.store.read import TeacherStore
from caskd.store.verify import verify_store
from caskd.store.verify.rows import row_problems

COMPACT = ROW_ENCODINGS["head_sampled", "compact"]
FITTED = ROW_ENCODINGS["head_sampled", "fitted2"]
V = len(stores.VOCAB)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TeacherStore:
    return head_stores.make_store(tmp_path_factory.mktemp("head") / "s", num=100, shard_rows=512)


@pytest.mark.parametrize("encoding", ["exact", "compact", "fitted2"])
def test_a_store_holds_head_and_draws_of_each_row(tmp_path: Path, encoding: str) -> None:
    store = head_stores.make_store(tmp_path / "s", encoding=encoding)
    assert (store.spec.kind, store.spec.format_version) == ("head_sampled", 2)
    batch = store.read(range(len(store)))
    for i, example in enumerate(stores.examples()):
        rows = slice(batch.row_offsets[i], batch.row_offsets[i + 1])
        labels = example.token_ids[np.flatnonzero(example.is_response)]
        wanted = head_stores.row_fields(i, stores.logits_of(i, len(labels)), labels)
        assert {*wanted} == {*store.row_fields}
        for name, values in wanted.items():
            found = batch.column(name)[rows]
            if encoding != "exact" and name in ("head_logits", "drawn_mass"):
                np.testing.assert_allclose(found, values, rtol=2e-3, atol=0.251)
            else:
                np.testing.assert_array_equal(found, values, err_msg=name)
    assert batch.topk_ids is None
    assert batch.tail_mass is None
    assert not verify_store(store.root, full=True).problems
    group = zarr.open_group(store.root / "data.zarr", mode="r", zarr_format=3)
    for array in store.spec.row_layouts():
        assert group[array.name][...].dtype == array.dtype


def test_a_chunk_with_rows_of_no_teacher_comes_back(store: TeacherStore) -> None:
    batch = store.read(range(len(store)))
    rows = {name: batch.column(name).copy() for name in store.row_fields}
    for name in store.row_fields:
        rows[name][::5] = -np.inf if name == "head_logits" else 0
    orders = fit_orders(rows["sampled_ids"], rows["num_kept"], len(stores.VOCAB), 2)
    stored = encoded("head_sampled", rows, orders)
    chunk = {name: values[:512] for name, values in stored.items()}
    for name in ("sampled_ids", "sampled_counts"):
        found = np.empty_like(rows[name][:512])
        COMPACT.decode(name, chunk, orders, found)
        np.testing.assert_array_equal(found, rows[name][:512])
    chunk["num_head"] = chunk["num_kept"] + np.uint16(1)
    with pytest.raises(CorruptError, match="num_head exceeds num_kept"):
        COMPACT.decode("sampled_ids", chunk, orders, found)


CELL_FIELDS = ("sampled_ids", "sampled_counts", "head_logits")


def decoded(stored: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The cells of one chunk of the fitted encoding, with no help from a store."""
    table = np.empty(IdLists.table_size(stored["sampled_id_lists"].shape, V), np.uint32)
    FITTED.decode("sampled_id_table", stored, None, table)
    found = {}
    for name in CELL_FIELDS:
        found[name] = np.empty((512, HEAD + NUM_SAMPLES), FIELD_DTYPES[name])
        FITTED.decode(name, {**stored, "sampled_id_table": table}, None, found[name])
    return found


@pytest.mark.parametrize(
    "name",
    [
        "head_id_places", "head_logit_steps", "sampled_place_steps", "sampled_place_counts",
        "num_head", "num_kept", "logsumexp",
    ],
)  # fmt: skip
@pytest.mark.parametrize("axis", [0, 1])
def test_arrays_moved_by_one_row_or_cell_give_other_cells(
    store: TeacherStore, name: str, axis: int
) -> None:
    batch = store.read(range(len(store)))
    rows = {field: batch.column(field)[:512].copy() for field in store.row_fields}
    rows["num_head"][::7], rows["num_kept"][::7] = 0, 0  # rows of unequal length
    rows["head_logits"][::7], rows["sampled_counts"][::7] = -np.inf, 0
    stored = FITTED.encode(rows, V)
    wanted = decoded(stored)
    np.testing.assert_array_equal(wanted["sampled_counts"], rows["sampled_counts"])
    if axis >= stored[name].ndim:
        return
    try:
        found = decoded({**stored, name: np.roll(stored[name], 1, axis=axis)})
    except CorruptError:
        return
    assert any((found[field] != wanted[field]).any(axis=1).mean() > 0.05 for field in wanted)


def test_rows_that_contradict_themselves_or_are_shifted_are_noticed(store: TeacherStore) -> None:
    batch = store.read(range(len(store)))
    assert row_problems(batch, store.spec) == []

    def problem(**changes: np.ndarray) -> str:
        found = row_problems(replace(batch, **changes), store.spec)
        assert found
        return found[0]

    ids, counts = batch.column("sampled_ids"), batch.column("sampled_counts")
    kept, mass = batch.column("num_kept"), batch.column("drawn_mass")
    more = counts.copy()
    more[0, HEAD] += 1
    assert "add up to num_samples" in problem(sampled_counts=more)
    in_head = counts.copy()
    in_head[:, 0] += 1
    in_head[:, HEAD] -= 1
    assert "drawn cells" in problem(sampled_counts=in_head)
    twice = ids.copy()
    twice[:, HEAD] = twice[:, 0]
    assert "twice" in problem(sampled_ids=twice)
    rising = batch.column("head_logits").copy()
    rising[:, [0, 1]] = rising[:, [1, 0]]
    assert "rank order" in problem(head_logits=rising)
    assert "drawn cells" in problem(num_kept=np.minimum(kept, HEAD + 1).astype(np.uint16))
    assert "num_head" in problem(num_head=np.full_like(kept, HEAD - 1))
    assert "add up to 1" in problem(drawn_mass=(mass / 2).astype(np.float32))
    assert "argmax is not" in problem(argmax=np.roll(batch.column("argmax"), 1))
    moved = {"sampled_ids", "sampled_counts", "num_kept"}
    shifted = {name: np.roll(batch.column(name), 1, axis=0) for name in moved}
    assert row_problems(replace(batch, **shifted), store.spec)


def test_the_chance_of_labels_ties_the_draws_to_the_text(store: TeacherStore) -> None:
    """Draws of other rows, each with its own head, fit the label's probability no more."""
    batch = store.read(range(len(store)))
    names = ("sampled_ids", "sampled_counts", "head_logits", "num_kept", "logsumexp", "drawn_mass",
             "argmax")  # fmt: skip
    moved = {name: np.roll(batch.column(name), 1, axis=0) for name in names}
    labels = batch.labels == moved["argmax"]
    rank = np.where(labels, 0, np.maximum(batch.column("label_rank"), 1)).astype(np.uint32)
    assert row_problems(replace(batch, **moved, label_rank=rank), store.spec)


def test_info_show_and_card_name_both_parts(store: TeacherStore) -> None:
    info = json.loads(json.dumps(store_info(store.root)))
    assert (info["kind"], info["head"], info["num_samples"]) == ("head_sampled", HEAD, NUM_SAMPLES)
    assert info["top_k"] is None
    said = f"top {HEAD} and {NUM_SAMPLES} draws of the rest of all 30 tokens"
    assert said in info_text(info)
    assert said in card(store.spec, store.seal)
    batch, row = store.read([0]), example_json(store, 0)["rows"][0]
    p = [choice["probability"] for choice in row["choices"]]
    log_p = batch.column("head_logits")[0, :HEAD] - batch.column("logsumexp")[0]
    np.testing.assert_allclose(p[:HEAD], np.exp(log_p), rtol=1e-6)
    share = batch.column("sampled_counts")[0, HEAD] / NUM_SAMPLES
    np.testing.assert_allclose(p[HEAD], share * batch.column("drawn_mass")[0], rtol=1e-6)
    assert row["tail_mass"] is None


def test_diff_and_export_know_the_kind(store: TeacherStore, tmp_path: Path) -> None:
    other = sampled_stores.make_store(tmp_path / "other", num=100, shard_rows=512)
    found = diff_stores(store.root, other.root)
    assert ("capture.kind", "head_sampled", "sampled") in found.identity
    with pytest.raises(UsageError, match=r"'head_sampled'.*expected kind 'topk'"):
        export_store(store, "axolotl", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_older_version_is_not_what_it_says(store: TeacherStore) -> None:
    value = json.loads(store.spec.to_json())
    del value["optional_arrays"]
    text = json.dumps({**value, "format_version": 1}).encode()
    with pytest.raises(Exception, match="needs format version 2"):
        StoreSpec.from_json(text, "store.json")
