"""Blocks of the Triton kernels: columns and warps of a program, by device and shape."""

from caskd.models.kernels.blocks import (
    CANDIDATES,
    Block,
    candidates,
    default_block,
    shared_bytes,
    shared_limit,
)
from caskd.models.kernels.measured import block_for, write_measured

__all__ = [
    "CANDIDATES",
    "Block",
    "block_for",
    "candidates",
    "default_block",
    "shared_bytes",
    "shared_limit",
    "write_measured",
]
