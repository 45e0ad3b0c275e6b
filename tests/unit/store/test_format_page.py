"""The reader printed in docs/store-format.md reads what caskd writes."""

import re
from pathlib import Path

import numpy as np
import pytest
import stores

from caskd.store import layout

PAGE = Path(__file__).parents[3] / "docs" / "store-format.md"


@pytest.mark.parametrize("num_orders", [1, 3])
def test_the_reader_on_the_page_reads_a_store(
    tmp_path: Path, num_orders: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "num_orders", lambda _: num_orders)
    store = stores.make_store(tmp_path / "s")
    assert store.id_order is not None
    assert len(store.id_order) == num_orders
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    assert len(blocks) == 1
    assert len(blocks[0].splitlines()) <= 15
    scope: dict[str, object] = {}
    exec(blocks[0], scope)
    for example in np.flatnonzero(store.row_counts()):
        got = scope["read_example"](store.root, example)
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


@pytest.mark.parametrize("encoding", ["exact", "compact"])
def test_the_page_names_every_array(encoding: str) -> None:
    page = PAGE.read_text(encoding="utf-8")
    arrays = (
        *layout.TOKEN_LAYOUTS, *layout.EXAMPLE_LAYOUTS, *layout.VOCAB_LAYOUTS, layout.ID_ORDER,
        *layout.row_layouts(encoding, 4, 8, 8),
    )  # fmt: skip
    assert [a.name for a in arrays if f"`{a.name}`" not in page] == []
