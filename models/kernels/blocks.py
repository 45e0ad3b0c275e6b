"""Which block a kernel takes where nothing was measured, and which may be measured.

A kernel whose sums depend on its block has one block for a device and a shape, so that a resumed
run and a repeated capture add up in the same order. The kernels in `CANDIDATES` compute each of
their results from one cell, or as a maximum or a count: any block gives the same bits.
"""

from dataclasses import dataclass
from itertools import product

Capability = tuple[int, int]
"""Compute capability of a CUDA device, as (major, minor)."""

CANDIDATES = ("differentiate", "maxima")
"""The kernels that may be measured: the gradient of the loss, and the maxima of a capture."""

_SHARED_KIB: dict[Capability, int] = {
    (8, 0): 163, (8, 6): 99, (8, 9): 99, (9, 0): 227, (10, 0): 227, (12, 0): 99,
}  # fmt: skip
"""Shared memory that one program may have (CUDA C++ programming guide, technical specifications
per compute capability)."""

_SHARED_KIB_ANYWHERE = 48
"""What a device of any capability has."""

_COLUMNS = 4096
_NUM_WARPS = 8


@dataclass(frozen=True)
class Block:
    """Size of one program of a kernel.

    Attributes:
        columns: of a row that it reads at once; a power of two.
        num_warps: of 32 threads each.
    """

    columns: int
    num_warps: int


def shared_bytes(block: Block) -> int:
    """Most shared memory of a program: a float32 and an int32 for each column, exchanged between
    warps. The kernels need less; a test compares it with what the compiler takes."""
    return 8 * block.columns


def shared_limit(capability: Capability | None) -> int:
    """Bytes of shared memory that a program may take; a safe number for an unknown device."""
    known = _SHARED_KIB.get(capability) if capability is not None else None
    return 1024 * (known or _SHARED_KIB_ANYWHERE)


def shape_bucket(num_columns: int) -> int:
    """The shapes that share a block: the next power of two."""
    return 1 << max(0, num_columns - 1).bit_length()


def default_block(capability: Capability | None, num_columns: int) -> Block:
    """The block of every kernel that was not measured on this device."""
    columns = min(_COLUMNS, shape_bucket(num_columns))
    while shared_bytes(Block(columns, _NUM_WARPS)) > shared_limit(capability):
        columns //= 2
    return Block(columns, _NUM_WARPS)


def candidates(capability: Capability | None, num_columns: int) -> list[Block]:
    """The blocks that may be measured: those that fit the device, none wider than the row."""
    widest = shape_bucket(num_columns)
    sizes = [size for size in (1024, 2048, 4096, 8192) if size <= widest]
    blocks = [Block(*pair) for pair in product(sizes or [widest], (4, 8, 16))]
    return [block for block in blocks if shared_bytes(block) <= shared_limit(capability)]
