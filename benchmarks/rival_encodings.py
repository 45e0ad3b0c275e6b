"""Encodings of top-k rows in other projects, re-implemented for comparison.

Legend: N rows, k cells per row, V vocabulary.

Each encodes some rows to bytes and decodes them to log-probabilities. None stores the tail: a
reader computes it as 1 minus the mass of the kept cells.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numcodecs.zstd import Zstd

CHUNK_ROWS = 4096
EXACT_CELLS = 16


@dataclass(frozen=True)
class Encoded:
    """Encoded chunks of some rows, with the bytes of ids and of values."""

    chunks: list[tuple[bytes, ...]]
    ids_bytes: int
    values_bytes: int


@dataclass(frozen=True)
class Rival:
    """An encoding by name: `encode(ids, log_p, V)`, and `decode(encoded, k, V)` to ids, log_p."""

    name: str
    encode: Callable[[np.ndarray, np.ndarray, int], Encoded]
    decode: Callable[[Encoded, int, int], tuple[np.ndarray, np.ndarray]]


def _in_chunks(values: np.ndarray) -> list[np.ndarray]:
    return [values[i : i + CHUNK_ROWS] for i in range(0, len(values), CHUNK_ROWS)]


def _encode_plain(ids: np.ndarray, log_p: np.ndarray, vocab_size: int) -> Encoded:
    zstd = Zstd(level=3)
    first = [zstd.encode(part) for part in _in_chunks(ids.astype(np.int32))]
    second = [zstd.encode(part) for part in _in_chunks(log_p.astype(np.float16))]
    return Encoded(
        list(zip(first, second, strict=True)), sum(map(len, first)), sum(map(len, second))
    )


def _decode_plain(encoded: Encoded, top_k: int, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    zstd = Zstd()
    ids = [np.frombuffer(zstd.decode(a), np.int32).astype(np.uint32) for a, _ in encoded.chunks]
    log_p = [
        np.frombuffer(zstd.decode(b), np.float16).astype(np.float32) for _, b in encoded.chunks
    ]
    return np.concatenate(ids).reshape(-1, top_k), np.concatenate(log_p).reshape(-1, top_k)


def _encode_megatron(ids: np.ndarray, log_p: np.ndarray, vocab_size: int) -> Encoded:
    """Ids as 16 low bits, and separately one high bit (V <= 2^17) or two."""
    zstd, chunks = Zstd(level=3), []
    ids_bytes = values_bytes = 0
    for part, values in zip(_in_chunks(ids), _in_chunks(log_p), strict=True):
        high = (part >> 16).astype(np.uint8)
        planes = [np.packbits(high >> bit & 1) for bit in range(_high_bits(vocab_size))]
        pieces = [
            zstd.encode(piece)
            for piece in (values.astype(np.float16), part.astype(np.uint16), *planes)
        ]
        chunks.append(tuple(pieces))
        values_bytes += len(pieces[0])
        ids_bytes += sum(map(len, pieces[1:]))
    return Encoded(chunks, ids_bytes, values_bytes)


def _high_bits(vocab_size: int) -> int:
    return max(1, (vocab_size - 1).bit_length() - 16)


def _decode_megatron(
    encoded: Encoded, top_k: int, vocab_size: int
) -> tuple[np.ndarray, np.ndarray]:
    zstd, all_ids, log_p = Zstd(), [], []
    for values, low, *planes in encoded.chunks:
        ids = np.frombuffer(zstd.decode(low), np.uint16).astype(np.uint32)
        for bit, plane in enumerate(planes):
            bits = np.unpackbits(np.frombuffer(zstd.decode(plane), np.uint8), count=len(ids))
            ids += bits.astype(np.uint32) << (16 + bit)
        all_ids.append(ids)
        log_p.append(np.frombuffer(zstd.decode(values), np.float16).astype(np.float32))
    return np.concatenate(all_ids).reshape(-1, top_k), np.concatenate(log_p).reshape(-1, top_k)


def _bf16(values: np.ndarray) -> np.ndarray:
    """bfloat16 as uint16 bits, rounded to nearest even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def _terms(top_k: int) -> np.ndarray:
    """Powers 0 to 4 of the rank and its square root, for the ranks that are approximated."""
    rank = np.arange(EXACT_CELLS, top_k) / top_k
    return np.stack([rank**i for i in range(5)] + [np.sqrt(rank)], axis=1)


def _encode_polynomial(ids: np.ndarray, log_p: np.ndarray, vocab_size: int) -> Encoded:
    fit = np.linalg.pinv(_terms(ids.shape[1]))
    width, chunks = (vocab_size - 1).bit_length(), []
    shifts = np.arange(width, dtype=np.uint32)
    ids_bytes = values_bytes = 0
    for part, values in zip(_in_chunks(ids), _in_chunks(log_p), strict=True):
        exact = _bf16(values[:, :EXACT_CELLS]).tobytes()
        curve = (values[:, EXACT_CELLS:] @ fit.T).astype(np.float32).tobytes()
        packed = np.packbits((part[..., None] >> shifts & 1).astype(np.uint8)).tobytes()
        chunks.append((exact, curve, packed))
        ids_bytes += len(packed)
        values_bytes += len(exact) + len(curve)
    return Encoded(chunks, ids_bytes, values_bytes)


def _decode_polynomial(
    encoded: Encoded, top_k: int, vocab_size: int
) -> tuple[np.ndarray, np.ndarray]:
    terms, width = _terms(top_k), (vocab_size - 1).bit_length()
    weights = (1 << np.arange(width)).astype(np.float64)
    all_ids, log_p = [], []
    for exact, curve, packed in encoded.chunks:
        first = (np.frombuffer(exact, np.uint16).astype(np.uint32) << 16).view(np.float32)
        first = first.reshape(-1, EXACT_CELLS)
        rest = np.frombuffer(curve, np.float32).reshape(len(first), -1) @ terms.T
        log_p.append(np.concatenate([first, rest], axis=1))
        bits = np.unpackbits(np.frombuffer(packed, np.uint8), count=len(first) * top_k * width)
        all_ids.append((bits.reshape(len(first), top_k, width) @ weights).astype(np.uint32))
    return np.concatenate(all_ids), np.concatenate(log_p)


RIVALS = (
    Rival("fp16 log-probs + int32 ids, zstd-3", _encode_plain, _decode_plain),
    Rival("Megatron-like: fp16, uint16 low, high bits, zstd-3", _encode_megatron, _decode_megatron),
    Rival("DistillKit-like: 16 bf16 + polynomial, packed", _encode_polynomial, _decode_polynomial),
)
