"""A teacher's checkpoint on this machine: what it is without its weights, and loading them."""

from caskd.precompute.checkpoints.loading import load_model
from caskd.precompute.checkpoints.source import (
    FLAG,
    TransformersCheckpoint,
    WeightBytes,
    check_safetensors,
    find_checkpoint,
    length_limit,
    load_dtype_of,
)

__all__ = [
    "FLAG",
    "TransformersCheckpoint",
    "WeightBytes",
    "check_safetensors",
    "find_checkpoint",
    "length_limit",
    "load_dtype_of",
    "load_model",
]
