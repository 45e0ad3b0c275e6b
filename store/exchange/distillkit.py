"""The codec of DistillKit's compressed Parquet: log-probabilities and ids as bytes.

Legend: N rows, k values of a row, e of them exact, n = k - e approximated, B bytes of a row.

Source: `distillkit/compression` of arcee-ai/DistillKit. A row holds the e exact values, then the
coefficients of a fit to the others, then bins of quantised residuals. Values are decoded in float32
here; DistillKit rounds them to the dtype of the exact values again.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from caskd.store.errors import UsageError

CONFIG_FILE = "compression_config.yaml"
Bytes = npt.NDArray[np.uint8]
Values = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]

_BITS = {"float16": 16, "bfloat16": 16, "float32": 32, "float64": 64}
_SPECIAL = {"sqrt": np.sqrt, "exp": np.exp}
_MOST_VALUES, _MOST_IDS, _HIGHEST_POWER = 1 << 16, 1 << 26, 64


@dataclass(frozen=True)
class Bin:
    """Quantised residuals of consecutive values: one scale, `bits` for each of `num` values."""

    scale_dtype: str
    bits: int
    num: int


@dataclass(frozen=True)
class Compression:
    """How a row became bytes: the fields of compression_config.yaml."""

    num_ids: int
    """d: ids have ceil(log2 d) bits. It may exceed the vocabulary, and is never computed again."""
    k: int
    exact_k: int
    exact_dtype: str
    terms: tuple[int | str, ...]
    """Powers of the rank t, or sqrt and exp of it."""
    term_dtype: str
    bins: tuple[Bin, ...]
    delta: bool
    """The stored values are differences from rank to rank."""
    unit_ranks: bool
    """Ranks t run from 0 to 1, not from 0 to n - 1."""

    @property
    def id_bits(self) -> int:
        """Bits of an id."""
        return (self.num_ids - 1).bit_length()

    @property
    def value_bytes(self) -> int:
        """B, bytes of the values of a row."""
        bits = self.exact_k * _BITS[self.exact_dtype] + len(self.terms) * _BITS[self.term_dtype]
        parts = [_BITS[b.scale_dtype] // 8 + -(-b.bits * b.num // 8) for b in self.bins]
        return bits // 8 + sum(parts)

    @property
    def id_bytes(self) -> int:
        """Bytes of the ids of a row."""
        return -(-self.k * self.id_bits // 8)


def parse_compression(data: bytes, where: str) -> Compression:
    """The settings in a compression_config.yaml.

    Raises:
        UsageError: not such a file, or a value is out of range.
    """
    import yaml

    try:
        value = yaml.safe_load(data)
        if not isinstance(value, dict):
            raise ValueError("holds no mapping")
        return _compression(value)
    except (yaml.YAMLError, ValueError, TypeError, KeyError, RecursionError) as error:
        problem = " ".join(str(error).split())[:160] or type(error).__name__
        if isinstance(error, KeyError):
            problem = f"lacks {error}"
        raise UsageError(
            f"{where}: {problem}; expected the settings of a DistillKit compressor; copy the file "
            "that its sampler wrote beside the Parquet files"
        ) from None


def _compression(value: Mapping[str, Any]) -> Compression:
    if value.get("temperature", 1) != 1:
        raise ValueError(f"temperature is {value['temperature']!r}; rows are of temperature 1")
    if "polynomial_degree" in value:
        raise ValueError("is of DistillKit's legacy logit compression, which has another layout")
    k = _count(value, "k", 1, _MOST_VALUES)
    exact = _count(value, "exact_k", 0, k)
    terms = tuple(map(_term, value.get("polynomial_terms") or ()))
    bins = tuple(map(_bin, value["residual_bins"] or ()))
    if sum(b.num for b in bins) > k - exact:
        raise ValueError(f"residual_bins hold more than the {k - exact} values behind exact_k")
    return Compression(
        num_ids=_count(value, "d", 2, _MOST_IDS),
        k=k,
        exact_k=exact,
        exact_dtype=_dtype(value.get("exact_dtype", "float32")),
        terms=terms,
        term_dtype=_dtype(value.get("term_dtype", "float32")),
        bins=bins,
        delta=_flag(value, "delta_encoding", True),
        unit_ranks=_flag(value, "normalize_t", False),
    )


def _count(value: Mapping[str, Any], name: str, least: int, most: int) -> int:
    found = value[name]
    if type(found) is not int or not least <= found <= most:
        raise ValueError(f"{name} is {str(found)[:40]!r}, not a number from {least} to {most:,}")
    return found


def _flag(value: Mapping[str, Any], name: str, default: bool) -> bool:
    found = value.get(name, default)
    if not isinstance(found, bool):
        raise ValueError(f"{name} is {str(found)[:40]!r}, not true or false")
    return found


def _dtype(name: Any) -> str:
    if not isinstance(name, str) or name not in _BITS:
        raise ValueError(f"dtype {str(name)[:40]!r} is not one of {', '.join(_BITS)}")
    return name


def _term(term: Any) -> int | str:
    if isinstance(term, str) and term in _SPECIAL:
        return term
    if type(term) is int and 0 <= term <= _HIGHEST_POWER:
        return term
    raise ValueError(f"polynomial_terms hold {str(term)[:40]!r}, not a power, sqrt or exp")


def _bin(value: Any) -> Bin:
    if not isinstance(value, dict):
        raise ValueError("residual_bins hold no mapping")
    return Bin(
        _dtype(value["scale_dtype"]),
        _count(value, "element_bits", 1, 64),
        _count(value, "num_elements", 1, _MOST_VALUES),
    )


def decode_values(data: Bytes, compression: Compression) -> Values:
    """Log-probabilities [N, k] from the bytes [N, B]; a missing rank is -inf or NaN."""
    c, at = compression, 0

    def take(dtype: str, num: int) -> npt.NDArray[Any]:
        nonlocal at
        start, at = at, at + num * _BITS[dtype] // 8
        return _floats(data[:, start:at], dtype)

    with np.errstate(all="ignore"):
        exact = take(c.exact_dtype, c.exact_k)
        coefficients = take(c.term_dtype, len(c.terms))
        rest = np.zeros((len(data), c.k - c.exact_k), np.float32)
        done = 0
        for one in c.bins:
            scale = take(one.scale_dtype, 1)
            size = -(-one.bits * one.num // 8)
            steps = unpack_bits(data[:, at : at + size], one.bits, one.num)
            at += size
            rest[:, done : done + one.num] = _residuals(steps, one.bits) * scale
            done += one.num
        rest += _fit(coefficients, c)
        values = np.concatenate([exact.astype(np.float32), rest], axis=1)
        if c.delta:
            values = np.cumsum(values, axis=1, dtype=np.float32)
    return values


def _fit(coefficients: npt.NDArray[Any], c: Compression) -> npt.NDArray[Any]:
    """The fitted values [N, n], with the roundings of the encoder."""
    n = c.k - c.exact_k
    if not c.terms:
        return np.zeros((len(coefficients), n), np.float32)
    t = np.linspace(0, 1, n) if c.unit_ranks else np.arange(n, dtype=np.float64)
    columns = [_SPECIAL[x](t) if isinstance(x, str) else t**x for x in c.terms]
    terms = _rounded(np.stack(columns, axis=1), c.term_dtype)  # [n, terms]
    total = np.zeros((len(coefficients), n), coefficients.dtype)
    for number in range(len(c.terms)):
        total += _rounded(terms[:, number] * coefficients[:, number : number + 1], c.term_dtype)
    return _rounded(total, c.term_dtype)


def _residuals(steps: npt.NDArray[np.uint64], bits: int) -> Values:
    if bits == 1:
        return steps.astype(np.float32) * 2 - 1
    return (steps.astype(np.float64) - 2.0 ** (bits - 1)).astype(np.float32)


def _floats(data: Bytes, dtype: str) -> npt.NDArray[Any]:
    """Little-endian numbers of a dtype; bfloat16 and float16 as float32."""
    data = np.ascontiguousarray(data)
    if dtype == "bfloat16":
        return (data.view("<u2").astype(np.uint32) << 16).view(np.float32)
    numbers = data.view({"float16": "<f2", "float32": "<f4", "float64": "<f8"}[dtype])
    return numbers.astype(np.float64 if dtype == "float64" else np.float32)


def _rounded(values: npt.NDArray[Any], dtype: str) -> npt.NDArray[Any]:
    """Numbers rounded to a dtype, as float32 or float64."""
    if dtype == "float64":
        return values.astype(np.float64)
    if dtype == "float16":
        return values.astype(np.float16).astype(np.float32)
    single = values.astype(np.float32)
    if dtype == "float32":
        return single
    bits = single.view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).view(np.float32)
    return np.where(np.isnan(single), single, rounded)


def unpack_bits(data: Bytes, bits: int, num: int) -> npt.NDArray[np.uint64]:
    """Numbers [N, num] of `bits` bits, the highest bit first, from bytes [N, ...]."""
    digits = np.unpackbits(data, axis=1, count=bits * num).reshape(len(data), num, bits)
    powers = np.uint64(1) << np.arange(bits - 1, -1, -1, dtype=np.uint64)
    result: npt.NDArray[np.uint64] = (digits * powers).sum(axis=2, dtype=np.uint64)
    return result


def decode_ids(data: Bytes, compression: Compression) -> Ids:
    """Token ids [N, k] from their bytes; those of missing ranks are arbitrary."""
    return unpack_bits(data, compression.id_bits, compression.k).astype(np.int64)


def encode_ids(ids: Ids, compression: Compression) -> Bytes:
    """Bytes of token ids [N, k]."""
    shifts = np.arange(compression.id_bits - 1, -1, -1, dtype=np.int64)
    digits = ((ids[:, :, None] >> shifts) & 1).astype(np.uint8)
    return np.packbits(digits.reshape(len(ids), -1), axis=1)


def encode_values(values: Values) -> Bytes:
    """Bytes of log-probabilities [N, k] that are all kept exactly, in float32."""
    return np.ascontiguousarray(values, "<f4").view(np.uint8).reshape(len(values), -1)
