"""A teacher's checkpoint on this machine: what it is without its weights, and loading them."""

from caskd.precompute.checkpoints.loading import load_model
from caskd.precompute.checkpoints.source import (
    FLAG,
    TransformersCheckpoint,
    WeightBytes,
    find_checkpoint,
    length_limit,
)

__all__ = [
    "FLAG",
    "TransformersCheckpoint",
    "WeightBytes",
    "find_checkpoint",
    "length_limit",
    "load_model",
]
