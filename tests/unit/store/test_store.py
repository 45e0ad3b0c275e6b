"""A store from plan to seal: geometry, alignment, reading, showing."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr
from helpers import stores

from caskd.cli.store_commands import ShowConfig, show_command
from caskd.cli.store_pages import example_page
from caskd.store import TeacherStore
from caskd.store.corpus import logit_positions, num_rows, row_labels
from caskd.store.corpus.alignment import row_positions
from caskd.store.errors import IdentityError, UsageError
from caskd.store.format import STAGING, layout
from caskd.store.inspect import store_info
from caskd.store.verify.rows import row_problems
from caskd.store.write import StoreWriter, find_store, plan_store


@pytest.fixture
def store(tmp_path: Path) -> TeacherStore:
    return stores.make_store(tmp_path / "s")


LOSS = {
    "exact": {},
    "compact": {"topk_logits": 0.13, "tail_mass": 2.5e-4},
    "fitted2": {
        "topk_logits": 0.29, "tail_mass": 1e-3, "label_logit": 0.036, "logsumexp": 0.032,
    },
}  # fmt: skip


@pytest.mark.parametrize("encoding", LOSS)
def test_rows_are_the_teachers_at_the_position_before_each_response_token(
    tmp_path: Path, encoding: str
) -> None:
    store = stores.make_store(tmp_path / "s", encoding=encoding)
    batch = store.read(range(len(store)))
    loss = LOSS[encoding]
    for i, example in enumerate(stores.examples()):
        rows = slice(batch.row_offsets[i], batch.row_offsets[i + 1])
        own = np.flatnonzero(example.is_response)
        own = own[own >= 1]
        np.testing.assert_array_equal(batch.labels[rows], example.token_ids[own])
        np.testing.assert_array_equal(batch.logit_positions[rows], own - 1)
        wanted = stores.row_fields(stores.logits_of(i, len(own)), example.token_ids[own], 4)
        for name, values in wanted.items():
            got = batch.column(name)[rows]
            if encoding == "fitted2" and name in ("topk_ids", "topk_logits"):  # ties stand by id
                key = np.argsort(batch.column("topk_ids")[rows], axis=1)
                got = np.take_along_axis(got, key, 1)
                values = np.take_along_axis(values, np.argsort(wanted["topk_ids"], axis=1), 1)
            np.testing.assert_allclose(got, values, rtol=0, atol=loss.get(name, 0), err_msg=name)


def test_a_shift_of_rows_labels_or_mask_by_one_is_noticed(store: TeacherStore) -> None:
    """The stored label_logit and label_rank tie each row to its own label."""
    batch = store.read([0, 1, 2])
    assert row_problems(batch, store.spec) == []
    moved = {
        "rows": np.roll(batch.column("label_rank"), 1),
        "argmax": np.roll(batch.column("argmax"), 1),
    }
    assert row_problems(type(batch)(**{**vars(batch), "label_rank": moved["rows"]}), store.spec)
    assert row_problems(type(batch)(**{**vars(batch), "argmax": moved["argmax"]}), store.spec)
    assert row_problems(
        type(batch)(**{**vars(batch), "labels": np.roll(batch.labels, 1)}), store.spec
    )


def test_alignment_of_the_first_token_several_turns_and_none() -> None:
    mask = np.array([1, 1, 0, 1, 0, 0, 1], np.uint8)
    tokens = np.arange(10, 17, dtype=np.uint32)
    assert row_positions(mask).tolist() == [1, 3, 6]
    assert logit_positions(mask).tolist() == [0, 2, 5]
    assert row_labels(tokens, mask).tolist() == [11, 13, 16]
    assert num_rows(mask) == 3
    assert num_rows(np.zeros(0, np.uint8)) == 0


def test_no_example_straddles_a_shard_and_filler_has_no_teacher_row(store: TeacherStore) -> None:
    index, size = store.index, store.spec.shard_rows
    with_rows = index.row_count > 0
    last = index.row_start + index.row_count - 1
    assert (index.row_start[with_rows] // size == last[with_rows] // size).all()
    kept = zarr.open_group(store.root / "data.zarr", mode="r", zarr_format=3)["num_kept"][...]
    assert kept.shape == (store.spec.num_shards * size,)
    used = np.zeros(len(kept), bool)
    for start, count in zip(index.row_start, index.row_count, strict=True):
        assert not used[start : start + count].any()
        used[start : start + count] = True
    assert (kept[used] > 0).all()
    assert (kept[~used] == 0).all()
    assert (~used).any()


def test_counts_add_up_in_the_seal(store: TeacherStore) -> None:
    assert store.seal["statuses"] == {"ok": 18, "empty": 2}
    info = store_info(store.root)
    assert info["num_examples"] == 20
    assert info["num_rows"] == int(store.row_counts().sum())
    assert info["bytes"] == sum(
        len(data)
        for name, data in stores.tree(store.root).items()
        if name.startswith("data.zarr/") or name == "store.json"
    )
    assert info["bytes_per_row"] == round(info["bytes"] / info["num_rows"], 3)
    assert info["sealed"] is True
    assert info["teacher"] == "toy"
    assert {"topk_ids", "topk_logits", "argmax"} <= set(info["fields"])


def test_same_bytes_in_any_order_of_shards_and_after_a_rerun(tmp_path: Path) -> None:
    one = stores.make_store(tmp_path / "one")
    plan_store(
        tmp_path / "two", stores.identity(), stores.examples(), shard_rows=32, vocab=stores.VOCAB
    )
    stores.fill(tmp_path / "two", only=list(range(one.spec.num_shards))[::-2])
    stores.fill(tmp_path / "two").seal()
    StoreWriter(tmp_path / "two").seal()
    assert stores.tree(tmp_path / "one") == stores.tree(tmp_path / "two")
    assert not (tmp_path / "two" / STAGING).exists()


def test_another_identity_is_refused_and_names_the_field(tmp_path: Path) -> None:
    make = {"shard_rows": 32, "vocab": stores.VOCAB}
    plan_store(tmp_path / "s", stores.identity(), stores.examples(), **make)
    before = stores.tree(tmp_path / "s")
    with pytest.raises(IdentityError, match=r"capture\.top_k is 4 there, but 5 here") as caught:
        plan_store(tmp_path / "s", stores.identity(5), stores.examples(), **make)
    assert caught.value.exit_code == 3
    same = plan_store(tmp_path / "s", stores.identity(), [], **make)
    assert same == find_store(tmp_path / "s")
    assert stores.tree(tmp_path / "s") == before


def test_fields_and_indices_are_checked(store: TeacherStore) -> None:
    batch = store.read([3, 3, 0], fields=["argmax"])
    assert batch.topk_ids is None
    assert len(batch.column("argmax")) == batch.num_rows
    with pytest.raises(UsageError, match="was not read"):
        batch.column("topk_ids")
    with pytest.raises(UsageError, match="expected 0 to 19"):
        store.read([20])
    with pytest.raises(UsageError, match="expected some of"):
        store.read([0], fields=["logits"])
    assert store.read([]).num_rows == 0


@pytest.mark.parametrize("encoding", ["compact", "fitted2"])
def test_zarr_alone_reads_the_arrays(tmp_path: Path, encoding: str) -> None:
    store = stores.make_store(tmp_path / "s", encoding=encoding)
    group = zarr.open_group(store.root / "data.zarr", mode="r", zarr_format=3)
    index = store.index
    start, count = int(index.row_start[0]), int(index.row_count[0])
    if encoding == "compact":
        np.testing.assert_array_equal(
            group["id_order"][...][group["topk_id_codes"][start : start + count]],
            store.read([0]).column("topk_ids"),
        )
    for array in (*layout.TOKEN_LAYOUTS, *layout.EXAMPLE_LAYOUTS, *layout.VOCAB_LAYOUTS):
        whole = store._arrays.whole(array.name)
        np.testing.assert_array_equal(group[array.name][...], whole, err_msg=array.name)
    for array in store.spec.row_layouts():
        parts = [store._arrays._disk_chunk(array, i) for i in range(store.spec.num_shards)]
        np.testing.assert_array_equal(group[array.name][...], np.concatenate(parts), array.name)


def test_show_escapes_what_the_store_contains(store: TeacherStore) -> None:
    from caskd.store.inspect import example_json
    from caskd.store.inspect.show import token_text

    assert "\x1b" not in token_text(b"\x1b[31m")
    assert token_text(b" \n") == "\u2423\u21b5"
    value = example_json(store, 0)
    assert len(value["rows"]) == store.index.row_count[0]
    assert all(row["choices"][0]["probability"] > 0 for row in value["rows"])


def test_a_page_of_an_example_runs_nothing(store: TeacherStore, tmp_path: Path) -> None:
    """A token that is a script and an escape sequence."""
    page = tmp_path / "example.html"
    hostile = int(store.read([0]).token_ids[0])
    store.vocab[hostile] = b"<script>alert(1)</script>\x1b[31m"
    text = example_page(store, 0).decode()
    assert text.count("<script") == 1  # the page's own
    assert "&lt;script&gt;alert" in text
    assert "\x1b" not in text
    assert "default-src 'none'" in text
    show_command(ShowConfig(str(store.root), html=str(page)))
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    with pytest.raises(UsageError, match="already exists"):
        show_command(ShowConfig(str(store.root), html=str(page)))


def test_store_commands_import_no_torch(store: TeacherStore) -> None:
    code = (
        "import sys; from caskd.cli.store_commands import InfoConfig, info_command, VerifyConfig, "
        f"verify_command; info_command(InfoConfig({str(store.root)!r}, json=True)); "
        f"verify_command(VerifyConfig({str(store.root)!r}, full=True)); "
        "assert not {'torch', 'transformers', 'deepspeed'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert ": ok (" in done.stdout
