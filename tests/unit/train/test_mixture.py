"""Mixing by weight: exact over a period, even over any range, a pure function of position."""

from pathlib import Path

import numpy as np
import pytest
from helpers import stores
from hypothesis import given, settings
from hypothesis import strategies as st

from caskd.store.errors import IdentityError, UsageError
from caskd.train.data import StoreMix, shares
from caskd.train.data.mixture import LATTICE, check_weights, parse_store, turns

weights_of = st.lists(st.floats(0.01, 5.0), min_size=1, max_size=5).map(tuple)


@settings(max_examples=50)
@given(weights_of, st.integers(0, 99), st.integers(0, 2 * LATTICE), st.integers(1, 2 * LATTICE))
def test_every_stretch_has_its_share_of_every_store(
    weights: tuple[float, ...], seed: int, first: int, size: int
) -> None:
    which, own = turns(weights, seed, np.arange(first, first + size))
    for store, share in enumerate(shares(weights)):
        mine = own[which == store]
        assert abs(len(mine) - share * size) < 8, "of up to twenty thousand"
        assert np.array_equal(np.diff(mine), np.ones(max(len(mine) - 1, 0)))
    period, _ = turns(weights, seed, np.arange(first, first + LATTICE))
    counts = np.bincount(period, minlength=len(weights))
    np.testing.assert_allclose(counts, np.array(shares(weights)) * LATTICE, atol=1)


def test_the_seed_says_who_begins() -> None:
    first = {int(turns((1.0, 1.0), seed, np.arange(1))[0][0]) for seed in range(20)}
    assert first == {0, 1}


def test_stores_and_weights_as_they_are_typed(tmp_path: Path) -> None:
    assert parse_store("a/b") == ("a/b", 1.0)
    assert parse_store("s3://x/y=0.25") == ("s3://x/y", 0.25)
    assert parse_store("s3://x/y=z") == ("s3://x/y=z", 1.0)
    (tmp_path / "date=2024").mkdir()
    assert parse_store(f"{tmp_path}/date=2024") == (f"{tmp_path}/date=2024", 1.0)
    for wrong in ("a=0", "a=-1", "a=nan", "a=inf"):
        with pytest.raises(UsageError, match="expected a number above 0"):
            parse_store(wrong)
    with pytest.raises(UsageError, match="the smallest weight"):
        check_weights((1.0, 1e-5))


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Two stores of unequal size and k."""
    root = tmp_path_factory.mktemp("mix")
    stores.make_store(root / "a", num=30, top_k=4)
    stores.make_store(root / "b", num=17, seed=5, top_k=6, encoding="exact")
    return str(root / "a"), str(root / "b")


def test_each_store_runs_through_its_own_epochs(two: tuple[str, str]) -> None:
    mix = StoreMix.open([f"{two[0]}=3", f"{two[1]}=1"])
    order = mix.order(seed=1)
    seen = order.at(np.arange(400))
    which = order.stores_of(seen)
    for store, own in enumerate(order.orders):
        mine = seen[which == store] - order.offsets[store]
        np.testing.assert_array_equal(mine, own.at(np.arange(len(mine))))
        epoch = mine[: own.num_examples]
        assert sorted(epoch) == np.flatnonzero(mix.stores[store].row_counts()).tolist()
    np.testing.assert_allclose(np.bincount(which), [300, 100], atol=3)


def test_one_store_alone_keeps_its_order(two: tuple[str, str]) -> None:
    order = StoreMix.open([two[0]]).order(seed=7)
    positions = np.arange(60)
    np.testing.assert_array_equal(order.at(positions), order.orders[0].at(positions))


def test_a_mixed_read_is_what_each_store_says(two: tuple[str, str]) -> None:
    mix = StoreMix.open(two)
    examples = mix.order(seed=0).at(np.arange(16))
    batch = mix.read(examples, ("topk_ids", "topk_logits", "num_kept", "label_logit"))
    assert batch.example_indices.tolist() == examples.tolist()
    assert set(np.unique(mix.order(0).stores_of(examples))) == {0, 1}
    for place, example in enumerate(examples):
        store = int(example >= len(mix.stores[0]))
        alone = mix.stores[store].read([example - store * len(mix.stores[0])])
        tokens = slice(*batch.token_offsets[place : place + 2])
        rows = slice(*batch.row_offsets[place : place + 2])
        np.testing.assert_array_equal(batch.token_ids[tokens], alone.token_ids)
        np.testing.assert_array_equal(batch.logit_positions[rows], alone.logit_positions)
        np.testing.assert_array_equal(batch.labels[rows], alone.labels)
        np.testing.assert_array_equal(batch.column("label_logit")[rows], alone.label_logit)
        k = alone.column("topk_ids").shape[1]
        np.testing.assert_array_equal(batch.column("topk_ids")[rows][:, :k], alone.topk_ids)
        assert np.all(batch.column("topk_logits")[rows][:, k:] == -np.inf)
    assert mix.row_counts()[examples].sum() == batch.num_rows
    assert mix.token_counts()[examples].sum() == len(batch.token_ids)


def test_what_cannot_be_mixed_is_refused(two: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="twice"):
        StoreMix.open([two[0], f"{two[0]}=2"])
    with pytest.raises(UsageError, match=r"--store.*at least one"):
        StoreMix.open([])
    original = stores.identity
    try:
        stores.identity = lambda *a, **k: {  # type: ignore[assignment]
            **original(*a, **k),
            "vocabulary": {**original()["vocabulary"], "digest": "ff" * 32},
        }
        stores.make_store(tmp_path / "other")
    finally:
        stores.identity = original
    with pytest.raises(IdentityError, match="one vocabulary only"):
        StoreMix.open([two[0], str(tmp_path / "other")])


def test_the_digest_tells_stores_and_shares(two: tuple[str, str]) -> None:
    digests = {
        StoreMix.open(names).digest
        for names in ([two[0]], [two[1]], [*two], [f"{two[0]}=2", two[1]], [two[1], two[0]])
    }
    assert len(digests) == 5
    same = StoreMix.open([f"{two[0]}=4", f"{two[1]}=2"]).digest
    assert same == StoreMix.open([f"{two[0]}=2", two[1]]).digest
