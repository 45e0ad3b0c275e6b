"""The table of row encodings: each entry is consistent, and a new one needs nothing else."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
from helpers import stores

from caskd.store.format import FIELD_DTYPES, ROW_ENCODINGS, TOPK, Array, RowArray, RowEncoding
from caskd.store.inspect import store_info
from caskd.store.verify import verify_store


@pytest.mark.parametrize("key", ROW_ENCODINGS, ids="-".join)
def test_every_field_is_an_array_or_has_arrays_as_sources(key: tuple[str, str]) -> None:
    encoding = ROW_ENCODINGS[key]
    tables = {array.name for array in encoding.tables(100, 8)}
    arrays = {array.name for array in encoding.arrays} | tables
    assert (encoding.kind.name, encoding.name) == key
    assert {*encoding.arrays_behind(encoding.kind.fields)} == arrays
    assert {*encoding.kind.fields} - {*encoding.sources} <= arrays
    assert not {*encoding.derived} & (arrays | {*encoding.kind.fields})
    assert not {*encoding.sources} & arrays
    assert {*encoding.kind.distribution} <= {*encoding.kind.fields} <= {*FIELD_DTYPES}
    assert {array.field for array in encoding.arrays if array.field} == {*encoding.sources}
    assert encoding.uses_id_orders == ("order" in {array.limit for array in encoding.arrays})


def test_arrays_behind_a_field_are_those_that_decoding_it_reads() -> None:
    compact = ROW_ENCODINGS["topk", "compact"]
    assert compact.arrays_behind(["topk_logits", "argmax"]) == [
        "argmax", "logsumexp", "num_kept", "topk_logit_steps",
    ]  # fmt: skip
    exact = ROW_ENCODINGS["sampled", "exact"]
    assert exact.arrays_behind(["sampled_counts"]) == ["sampled_counts"]
    assert exact.arrays_behind([]) == []


def test_limits_are_the_last_id_the_number_of_cells_and_the_last_order() -> None:
    limits = ROW_ENCODINGS["sampled", "compact"].limits(vocab_size=100, num_cells=7, num_orders=4)
    assert limits == {
        "sampled_place_steps": 99, "sampled_id_order": 3, "sampled_place_counts": 7,
        "num_kept": 7, "argmax": 99, "label_rank": 99,
    }  # fmt: skip


class HalfPrecision(RowEncoding):
    """A made-up encoding: the logits as bits of float16."""

    kind = TOPK
    name = "half"
    cell_arrays = (
        TOPK.cells[0],
        RowArray("topk_logit_halves", "uint16", "transposed", field="topk_logits"),
    )
    sources = MappingProxyType({"topk_logits": ("topk_logit_halves",)})
    exact = False
    cell_bytes = (2.0, 3.0)

    def encode(self, rows: Mapping[str, Array], vocab_size: int) -> dict[str, Array]:
        kept = {name: values for name, values in rows.items() if name != "topk_logits"}
        return {**kept, "topk_logit_halves": rows["topk_logits"].astype(np.float16).view(np.uint16)}

    def decode(
        self, name: str, stored: Mapping[str, Array], id_orders: Array | None, out: Array
    ) -> None:
        assert name == "topk_logits"
        out[:] = stored["topk_logit_halves"].view(np.float16)


def test_a_new_encoding_is_one_class_and_one_line_in_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ROW_ENCODINGS, ("topk", "half"), HalfPrecision())  # type: ignore[arg-type]
    found = stores.make_store(tmp_path / "half", encoding="half")
    wanted = stores.make_store(tmp_path / "exact", encoding="exact")
    assert not verify_store(found.root, full=True).problems
    assert found.id_order is None
    batch, known = found.read(range(20)), wanted.read(range(20))
    np.testing.assert_array_equal(batch.topk_ids, known.topk_ids)
    np.testing.assert_allclose(batch.column("topk_logits"), known.column("topk_logits"), rtol=1e-3)
    assert (batch.column("topk_logits") != known.column("topk_logits")).any()
    assert store_info(found.root)["fields"]["topk_logits"]["dtype"] == "uint16"
