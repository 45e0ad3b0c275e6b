"""The reader printed in docs/store-format.md reads what caskd writes."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import head_stores, sampled_stores, stores

from caskd.store.format import ROW_ENCODINGS, layout

PAGE = Path(__file__).parents[3] / "docs" / "store-format.md"


def reader(name: str) -> Callable[..., Any]:
    """The function that the page prints under this name, within 15 lines."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    (block,) = (block for block in blocks if f"def {name}(" in block)
    assert len(block.splitlines()) <= 15
    scope: dict[str, Any] = {}
    exec(block, scope)
    found: Callable[..., Any] = scope[name]
    return found


@pytest.mark.parametrize("num_orders", [1, 3])
def test_the_reader_on_the_page_reads_a_store(
    tmp_path: Path, num_orders: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "num_orders", lambda _: num_orders)
    store = stores.make_store(tmp_path / "s", encoding="compact")
    assert store.id_order is not None
    assert len(store.id_order) == num_orders
    read_example = reader("read_example")
    for example in np.flatnonzero(store.row_counts()):
        got = read_example(store.root, example)
        batch = store.read([example])
        log_p = batch.column("topk_logits") - batch.column("logsumexp")[:, None]
        p = np.exp(log_p.astype(np.float64))
        p *= ((1 - batch.column("tail_mass")) / p.sum(1))[:, None]
        wanted = (
            batch.token_ids, batch.logit_positions, batch.labels, batch.column("topk_ids"), p,
            batch.column("argmax"), batch.column("label_rank"),
        )  # fmt: skip
        for ours, theirs in zip(wanted, got, strict=True):
            np.testing.assert_allclose(theirs, ours, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "encoding"), [("read_draws", "compact"), ("read_fitted_draws", "fitted2")]
)
@pytest.mark.parametrize("shard_rows", [32, 1024])
@pytest.mark.slow
def test_the_reader_of_draws_on_the_page_reads_a_store(
    tmp_path: Path, shard_rows: int, name: str, encoding: str
) -> None:
    store = sampled_stores.make_store(
        tmp_path / "s", num=120, shard_rows=shard_rows, encoding=encoding
    )
    read_draws = reader(name)
    for example in np.flatnonzero(store.row_counts())[::3]:  # the page reads slowly
        ids, shares = read_draws(store.root, example)
        batch = store.read([example])
        # The page hands cells out by place, caskd by count.
        key = np.argsort(np.where(shares > 0, -shares * 10**6 + ids, np.inf), axis=1)
        ids, shares = (np.take_along_axis(values, key, axis=1) for values in (ids, shares))
        np.testing.assert_array_equal(ids, batch.column("sampled_ids"))
        np.testing.assert_allclose(
            shares, batch.column("sampled_counts") / sampled_stores.NUM_SAMPLES
        )


@pytest.mark.parametrize(
    ("name", "encoding"), [("read_head_draws", "compact"), ("read_fitted_head_draws", "fitted2")]
)
@pytest.mark.parametrize("shard_rows", [32, 1024])
def test_the_reader_of_head_and_draws_on_the_page(
    tmp_path: Path, shard_rows: int, name: str, encoding: str
) -> None:
    store = head_stores.make_store(tmp_path / "s", num=16, shard_rows=shard_rows, encoding=encoding)
    read_head_draws = reader(name)
    for example in np.flatnonzero(store.row_counts()):
        batch = store.read([example])
        own_ids, counts = batch.column("sampled_ids"), batch.column("sampled_counts")
        mass = batch.column("drawn_mass")[:, None]
        p = np.exp(batch.column("head_logits") - batch.column("logsumexp")[:, None])
        p *= (1 - mass) / p.sum(1, keepdims=True)  # the head's; 0 beyond
        p += mass * counts / head_stores.NUM_SAMPLES
        rows = np.arange(batch.num_rows)[:, None]
        wanted = np.zeros((batch.num_rows, len(stores.VOCAB)))
        np.add.at(wanted, (rows, own_ids), p)
        ids, target = read_head_draws(store.root, example)
        found = np.zeros_like(wanted)
        np.add.at(found, (rows, ids), target)
        np.testing.assert_allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize(("kind", "encoding"), ROW_ENCODINGS)
def test_the_page_names_every_array(kind: str, encoding: str) -> None:
    page = PAGE.read_text(encoding="utf-8")
    arrays = (
        *layout.TOKEN_LAYOUTS, *layout.EXAMPLE_LAYOUTS, *layout.VOCAB_LAYOUTS, layout.ID_ORDER,
        *ROW_ENCODINGS[kind, encoding].layouts(4, 8, 8),
        *ROW_ENCODINGS[kind, encoding].tables(100, 8),
    )  # fmt: skip
    assert [a.name for a in arrays if f"`{a.name}`" not in page] == []


@pytest.mark.parametrize(("shard_rows", "top_k"), [(32, 20), (1024, 5)])
def test_the_reader_of_a_fitted_store_on_the_page(
    tmp_path: Path, shard_rows: int, top_k: int
) -> None:
    store = stores.make_store(
        tmp_path / "s", encoding="fitted2", num=16, shard_rows=shard_rows, top_k=top_k, ragged=True
    )
    read_fitted = reader("read_fitted")
    for example in np.flatnonzero(store.row_counts()):
        batch = store.read([example])
        with np.errstate(invalid="ignore"):
            log_p = batch.column("topk_logits") - batch.column("logsumexp")[:, None]
        p = np.exp(log_p.astype(np.float64))
        p *= ((1 - batch.column("tail_mass")) / p.sum(1))[:, None]
        ids, found = read_fitted(store.root, example)
        # The page hands tied cells out by place, caskd by id.
        key = np.lexsort((ids, -found), axis=1)
        key[:, 0] = 0
        np.testing.assert_allclose(found, p, rtol=1e-5)
        for ours, theirs in zip(batch.column("topk_ids"), ids, strict=True):
            assert ours[0] == theirs[0]
            assert sorted(ours.tolist()) == sorted(theirs.tolist())
