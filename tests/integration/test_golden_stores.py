"""Stores that an earlier caskd wrote: every version reads them to the values that are known."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from caskd.store.errors import UnsafeError
from caskd.store.format import layout
from caskd.store.read import TeacherStore
from caskd.store.verify import verify_store

DATA = Path(__file__).parents[1] / "data"
EXACT, COMPACT = DATA / "golden-v1-exact", DATA / "golden-v1-compact"
SAMPLED = DATA / "golden-v1-sampled"
KINDS = (
    "fitted", "fitted2", "fitted2-draws", "fitted2-head", "served", "imported", "draws", "head",
)  # fmt: skip
VERSION_2 = [DATA / f"golden-v2-{kind}" for kind in KINDS]
KNOWN = json.loads((DATA / "golden-v1.json").read_text(encoding="utf-8"))
KNOWN_DRAWS = json.loads((DATA / "golden-v1-sampled.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", [EXACT, COMPACT, SAMPLED, *VERSION_2], ids=lambda path: path.name)
def test_a_golden_store_is_small_and_verifies(path: Path) -> None:
    assert sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) < 200_000
    assert not verify_store(path, full=True).problems


@pytest.mark.parametrize(
    ("path", "known"),
    [
        (EXACT, KNOWN),
        (SAMPLED, KNOWN_DRAWS),
        *((path, json.loads(path.with_suffix(".json").read_text())) for path in VERSION_2),
    ],
    ids=["exact", "sampled", *KINDS],
)
def test_a_golden_store_holds_the_known_values(path: Path, known: dict[str, Any]) -> None:
    store = TeacherStore.open(path)
    batch = store.read(range(len(store)))
    found = {
        name: hashlib.sha256(np.ascontiguousarray(getattr(batch, name)).tobytes()).hexdigest()
        for name in known["sha256"]
    }
    assert found == known["sha256"]
    first = store.read([0])
    for name, values in known["first_example"].items():
        assert getattr(first, name).tolist() == values, name


def test_the_compact_golden_store_holds_the_same_rows_again_and_again() -> None:
    exact, compact = TeacherStore.open(EXACT), TeacherStore.open(COMPACT)
    assert compact.id_order is not None
    assert len(compact.id_order) == layout.num_orders(compact.spec.num_rows) == 4
    wanted = exact.read(range(len(exact)))
    batch = compact.read(range(len(compact)))
    repeats = len(compact) // len(exact)
    for name in KNOWN["sha256"]:
        values, known = getattr(batch, name), getattr(wanted, name)
        known = np.tile(known, (repeats, *[1] * (known.ndim - 1)))
        if name == "tail_mass":
            np.testing.assert_allclose(values, known, rtol=2.0**-10, atol=0)
        elif name == "topk_logits":
            np.testing.assert_allclose(values, known, rtol=0, atol=0.126)
            lse = batch.column("logsumexp")[:, None]
            np.testing.assert_allclose(np.exp(values - lse), np.exp(known - lse), atol=2e-3)
        else:
            np.testing.assert_array_equal(values, known, err_msg=name)


@pytest.mark.parametrize(
    ("kind", "lists", "number"),
    [
        ("fitted", "topk_id_lists", 4),
        ("fitted2", "topk_id_lists", 4),
        ("fitted2-draws", "sampled_id_lists", 2),
        ("fitted2-head", "sampled_id_lists", 4),
    ],
)
def test_a_fitted_golden_store_is_of_format_2_with_lists_in_each_shard(
    kind: str, lists: str, number: int
) -> None:
    store = TeacherStore.open(DATA / f"golden-v2-{kind}")
    assert store.spec.encoding == kind.partition("-")[0]
    assert (store.spec.format_version, store.spec.num_shards) == (2, 2)
    assert {array.name: array.shard for array in store.spec.row_layouts()}[lists] == number
    assert not (store.root / "commits" / "pilot.json").exists()


def test_a_newer_format_is_refused_in_one_line(tmp_path: Path) -> None:
    shutil.copytree(EXACT, tmp_path / "s")
    path = tmp_path / "s" / "store.json"
    value = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**value, "format_version": 2}), encoding="utf-8")
    with pytest.raises(UnsafeError, match=r"format version is 2.*reads version 1") as e:
        TeacherStore.open(tmp_path / "s")
    assert "\n" not in str(e.value)


def test_both_fitted_golden_stores_hold_the_same_rows() -> None:
    """They differ in how places are stored and in the rounding of logsumexp."""
    old, new = (TeacherStore.open(DATA / f"golden-v2-{kind}") for kind in ("fitted", "fitted2"))
    batches = [store.read(range(len(store))) for store in (old, new)]
    for name in ("topk_ids", "num_kept", "argmax", "label_rank", "tail_mass"):
        np.testing.assert_array_equal(*(batch.column(name) for batch in batches), err_msg=name)
    log_p = [b.column("topk_logits") - b.column("logsumexp")[:, None] for b in batches]
    np.testing.assert_allclose(*log_p, rtol=0, atol=1e-5)
