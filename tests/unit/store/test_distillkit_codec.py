"""The codec of DistillKit's compressed rows, held to bytes that its own code wrote."""

from typing import Any

import numpy as np
import pytest
import yaml

from caskd.store.errors import UsageError
from caskd.store.exchange import (
    Compression,
    decode_ids,
    decode_values,
    encode_ids,
    parse_compression,
)

IDS = [5, 49151, 1000, 0, 42, 31337, 7, 255]
VALUES = [-0.25, -1.5, -3, -4, -5.5, -6, -6.25, -7]


def compression(**settings: Any) -> Compression:
    base = {
        "d": 49152, "k": 8, "exact_k": 8, "exact_dtype": "bfloat16", "polynomial_terms": None,
        "term_dtype": "float32", "residual_bins": [], "delta_encoding": False,
        "error_diffusion": False, "normalize_t": False,
    }  # fmt: skip
    return parse_compression(yaml.safe_dump({**base, **settings}).encode(), "here")


def row(text: str) -> np.ndarray:
    return np.frombuffer(bytes.fromhex(text), np.uint8)[None]


@pytest.mark.parametrize(
    ("num_ids", "data"),
    [
        (49152, "0005bfff03e80000002a7a69000700ff"),
        (65536, "0005bfff03e80000002a7a69000700ff"),
        (65537, "0002afffc07d0000000151e9a4000e00ff"),
    ],
)
def test_ids_have_the_golden_bytes(num_ids: int, data: str) -> None:
    chosen = compression(d=num_ids)
    assert decode_ids(row(data), chosen).tolist() == [IDS]
    assert encode_ids(np.array([IDS]), chosen).tobytes().hex() == data
    assert chosen.id_bytes == len(data) // 2


FITTED = {"exact_k": 4, "polynomial_terms": [0, 1, 2, "sqrt"]}
QUANTISED = {
    "exact_k": 2, "exact_dtype": "float16", "polynomial_terms": [0, 1],
    "residual_bins": [{"scale_dtype": "float16", "element_bits": 4, "num_elements": 4}],
}  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "data", "values"),
    [
        (
            FITTED,
            "80bec0bf40c080c00900b0c0469bad3f2bcfa5be7d27c4bf",
            [*VALUES[:4], -5.500004, -6.000005, -6.250006, -7.000007],
        ),
        (
            QUANTISED,
            "00b400be651856c0755047bfc82cda04",
            [-0.25, -1.5, -2.971704, -3.974396, -5.500038, -5.979781, -6.459525, -7.238096],
        ),
        ({"delta_encoding": True}, "80bea0bfc0bf80bfc0bf00bf80be40bf", VALUES),
    ],
    ids=["polynomial", "quantised", "delta"],
)
def test_values_have_the_golden_bytes(
    settings: dict[str, Any], data: str, values: list[float]
) -> None:
    chosen = compression(**settings)
    assert chosen.value_bytes == len(data) // 2
    np.testing.assert_allclose(decode_values(row(data), chosen), [values], atol=1e-6)


def test_missing_ranks_are_not_finite() -> None:
    delta = row("80bea0bfc0bf80bfc0bf00bf80ff0000")  # -inf, then a difference that was NaN
    found = decode_values(delta, compression(delta_encoding=True))[0]
    assert np.isfinite(found).tolist() == [True] * 6 + [False] * 2
    nan = np.float32("nan").tobytes().hex() * 4
    found = decode_values(row("80bec0bf40c080c0" + nan), compression(**FITTED))[0]
    assert np.isfinite(found).tolist() == [True] * 4 + [False] * 4


def test_one_bit_is_a_sign() -> None:
    bins = [{"scale_dtype": "float32", "element_bits": 1, "num_elements": 8}]
    chosen = compression(exact_k=0, residual_bins=bins)
    data = np.concatenate([np.array([0.5], "<f4").view(np.uint8), np.array([0b10110010], np.uint8)])
    signs = np.array([1, -1, 1, 1, -1, -1, 1, -1])
    assert decode_values(data[None], chosen)[0].tolist() == (0.5 * signs).tolist()


@pytest.mark.parametrize("bits", [3, 8, 17, 63, 64])
def test_bins_of_any_width_are_whole_numbers_of_bytes(bits: int) -> None:
    bins = [{"scale_dtype": "float32", "element_bits": bits, "num_elements": 3}]
    chosen = compression(exact_k=0, residual_bins=bins)
    steps = [0, 2**bits - 1, 2 ** (bits - 1)]
    digits = "".join(format(step, f"0{bits}b") for step in steps)
    digits += "0" * (-len(digits) % 8)
    packed = [int(digits[n : n + 8], 2) for n in range(0, len(digits), 8)]
    data = np.concatenate([np.array([2.0], "<f4").view(np.uint8), np.array(packed, np.uint8)])
    found = decode_values(data[None], chosen)[0]
    expected = [(step - 2 ** (bits - 1)) * 2.0 for step in steps] + [0] * 5
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "fact"),
    [
        ({"k": 0}, "k is"),
        ({"k": "8"}, "k is"),
        ({"exact_k": 9}, "exact_k is"),
        ({"d": 1 << 40}, "d is"),
        ({"exact_dtype": "int8"}, "int8"),
        ({"polynomial_terms": ["cosh"]}, "cosh"),
        ({"polynomial_terms": [10**9]}, "polynomial_terms"),
        ({"delta_encoding": "yes"}, "delta_encoding"),
        ({"residual_bins": [{"element_bits": 4, "num_elements": 2}]}, "scale_dtype"),
        ({"temperature": 2.0}, "temperature is 2.0"),
        ({"polynomial_degree": 8}, "legacy"),
        (
            {"residual_bins": [{"scale_dtype": "float16", "element_bits": 4, "num_elements": 9}]},
            "0",
        ),
    ],
)
def test_settings_of_no_compressor_are_refused(settings: dict[str, Any], fact: str) -> None:
    with pytest.raises(UsageError, match=f"here: .*{fact}"):
        compression(**settings)


@pytest.mark.parametrize(
    "data", [b"", b"[1, 2]", b"{", b"\xff\xfe", b"!!python/object/apply:os.getcwd []"]
)
def test_other_files_are_refused(data: bytes) -> None:
    with pytest.raises(UsageError, match=r"here: .*compressor"):
        parse_compression(data, "here")
