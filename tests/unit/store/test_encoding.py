"""The compact encoding of earlier versions: top-k rows come back with exact ids, a small KL."""

import struct
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
from helpers import stores
from helpers.compact_stores import encoded, fit_orders
from hypothesis import given, settings
from hypothesis import strategies as st

from caskd.store.errors import CorruptError
from caskd.store.format import ROW_ENCODINGS, ShardFile, layout
from caskd.store.format.codecs import decode_chunk, encode_chunk

V, K = 500, 64


def rows_of(
    seed: int, scale: float, num_rows: int = 64
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    logits = (rng.standard_t(3, (num_rows, V)) * scale).astype(np.float32)
    return logits, stores.row_fields(logits, rng.integers(0, V, num_rows), K)


def round_trip(rows: dict[str, np.ndarray], num_orders: int = 3) -> dict[str, np.ndarray]:
    orders = fit_orders(rows["topk_ids"], rows["num_kept"], V, num_orders)
    assert orders.shape == (num_orders, V)
    np.testing.assert_array_equal(np.sort(orders, axis=1), np.tile(np.arange(V), (num_orders, 1)))
    encoding = ROW_ENCODINGS["topk", "compact"]
    stored = encoded("topk", rows, orders)
    dtypes = {name: str(values.dtype) for name, values in stored.items() if name not in rows}
    assert dtypes == {
        "topk_logit_steps": "uint16", "topk_id_codes": "uint32", "topk_id_order": "uint8",
    }  # fmt: skip
    back = {name: values for name, values in stored.items() if name in rows}
    for name in ("topk_ids", "topk_logits"):
        back[name] = np.empty_like(rows[name])
        encoding.decode(name, stored, orders, back[name])
    return back


def probabilities(rows: dict[str, np.ndarray]) -> np.ndarray:
    """[N, k + 1]: what a reader takes, the tail last."""
    cells = np.arange(K) < rows["num_kept"][:, None]
    with np.errstate(invalid="ignore"):
        log_p = rows["topk_logits"].astype(np.float64) - rows["logsumexp"][:, None]
    p = np.where(cells, np.exp(log_p), 0)
    tail = rows["tail_mass"].astype(np.float64)[:, None]
    return np.concatenate([p * (1 - tail) / p.sum(1, keepdims=True), tail], axis=1)


@settings(max_examples=60)
@given(seed=st.integers(0, 10**6), scale=st.sampled_from([0.0, 0.1, 1.0, 3.0, 20.0, 300.0]))
def test_ids_are_exact_and_probabilities_close(seed: int, scale: float) -> None:
    _, rows = rows_of(seed, scale)
    back = round_trip(rows)
    for name in ("topk_ids", "num_kept", "logsumexp", "label_logit", "argmax", "label_rank"):
        np.testing.assert_array_equal(back[name], rows[name])
    assert (np.diff(back["topk_logits"], axis=1) <= 0).all()
    p, q = probabilities(rows), probabilities(back)
    assert np.abs(p - q).max() <= 2e-3
    kl = np.where(p > 0, p * np.log(np.maximum(p, 1e-300) / np.maximum(q, 1e-300)), 0).sum(1)
    assert kl.mean() <= 1.2e-5


def test_padding_and_rows_without_a_teacher_come_back_as_padding() -> None:
    _, rows = rows_of(0, 2.0)
    rows["num_kept"][:8] = 0
    rows["num_kept"][8:16] = 5
    padding = np.arange(K) >= rows["num_kept"][:, None]
    rows["topk_ids"] = np.where(padding, 0, rows["topk_ids"]).astype(np.uint32)
    rows["topk_logits"] = np.where(padding, -np.inf, rows["topk_logits"]).astype(np.float32)
    back = round_trip(rows)
    np.testing.assert_array_equal(back["topk_ids"], rows["topk_ids"])
    np.testing.assert_array_equal(np.isneginf(back["topk_logits"]), padding)


def test_tail_mass_is_rounded_to_9_bits_and_never_above_one() -> None:
    values = np.array([0, 1e-30, 1e-8, 0.1, 0.5, 1 - 1e-7, 1], np.float32)
    _, rows = rows_of(0, 1.0, 7)
    rows["tail_mass"] = values
    back = round_trip(rows)["tail_mass"]
    assert back.max() <= 1
    np.testing.assert_allclose(back, values, rtol=2.0**-10)


@pytest.mark.parametrize("chain", ["plain", "shuffled", "transposed", "packed"])
def test_a_chunk_says_when_it_is_not_what_was_written(chain: str) -> None:
    values = np.random.default_rng(0).integers(0, 99, (32, 8)).astype(np.uint32)
    data = encode_chunk(chain, values)
    np.testing.assert_array_equal(decode_chunk(chain, data, "uint32", (32, 8)), values)
    for position in range(len(data)):
        changed = data[:position] + bytes([data[position] ^ 0x10]) + data[position + 1 :]
        with pytest.raises(CorruptError):
            decode_chunk(chain, changed, "uint32", (32, 8))
    for shape in [(31, 8), (33, 8)]:
        with pytest.raises(CorruptError):
            decode_chunk(chain, data, "uint32", shape)
    with pytest.raises(CorruptError):
        decode_chunk(chain, data[:3], "uint32", (32, 8))


@pytest.mark.parametrize("value", [65_535, 60_000, 4096])
@pytest.mark.parametrize("cell", [(0, 0), (3, 7), (63, 5)])
def test_steps_that_lead_beyond_the_codes_are_refused(value: int, cell: tuple[int, int]) -> None:
    """Also where the sum leaves its 16 bits and comes back among the codes."""
    _, rows = rows_of(0, 2.0)
    orders = fit_orders(rows["topk_ids"], rows["num_kept"], V, 1)
    stored = encoded("topk", rows, orders)
    steps = np.ascontiguousarray(stored["topk_logit_steps"].T)
    steps[cell[1], cell[0]] = value
    with pytest.raises(CorruptError, match=r"topk_logit_steps lead beyond 4,095"):
        ROW_ENCODINGS["topk", "compact"].decode(
            "topk_logits", {**stored, "topk_logit_steps": steps.T}, orders,
            np.empty((64, K), np.float32),
        )  # fmt: skip


def test_small_stores_have_few_orders_of_ids() -> None:
    sizes = (0, (1 << 15) - 1, 1 << 15, 1 << 16, (1 << 19) - 1, 1 << 19, 10**9)
    assert [layout.num_orders(n) for n in sizes] == [1, 1, 4, 8, 8, 16, 16]


def test_shard_rows_that_do_not_divide_are_refused_with_one_that_does() -> None:
    assert layout.chunk_rows_for(65_536) == 512
    assert layout.chunk_rows_for(100) == 100
    with pytest.raises(
        ValueError, match=r"--shard-rows\b.* 1000\b.*multiple of 512.*--shard-rows 1024"
    ):
        layout.chunk_rows_for(1000)


def test_an_index_entry_larger_than_any_encoded_chunk_is_refused(tmp_path: Path) -> None:
    array = layout.ArrayLayout("argmax", "uint32", 16, 16, "packed")
    largest = 2 * 16 * 4 + (1 << 16)
    for size in (largest, largest + 1):
        index = struct.pack("<QQ", 0, size)
        footer = index + struct.pack("<I", google_crc32c.value(index))
        (tmp_path / "shard").write_bytes(bytes(size) + footer)
        if size == largest:
            ShardFile(tmp_path / "shard", array).close()
            continue
        with pytest.raises(CorruptError, match="index"):
            ShardFile(tmp_path / "shard", array)


def test_tail_mass_is_rounded_to_nine_bits_to_nearest_and_at_most_1() -> None:
    _, rows = rows_of(0, 1.0, num_rows=6)
    unit = 2.0**-10  # half a step of nine bits, relative
    given = np.array([2.5, 3.0, 3.5, 4.0, 5.5, 1023.5]) * unit
    rows["tail_mass"] = (0.5 * (1 + given)).astype(np.float32)
    wanted = 0.5 * (1 + np.array([2.0, 4.0, 4.0, 4.0, 6.0, 1024.0]) * unit)
    np.testing.assert_array_equal(round_trip(rows)["tail_mass"], wanted.astype(np.float32))
