"""What caskd knows of transformers models: opening, digests, devices, body and head apart."""

from caskd.models.batching import Arrange, longest_first, num_in_batch, pack, pad, padded_batches
from caskd.models.devices import fixed_kernels, memory_errors, pick_device
from caskd.models.digests import weights_digest
from caskd.models.split_model import SplitModel, check_split, is_same_together

__all__ = [
    "Arrange",
    "SplitModel",
    "check_split",
    "fixed_kernels",
    "is_same_together",
    "longest_first",
    "memory_errors",
    "num_in_batch",
    "pack",
    "pad",
    "padded_batches",
    "pick_device",
    "weights_digest",
]
