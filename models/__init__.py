"""What caskd knows of transformers models: opening, digests, devices, body and head apart."""

from caskd.models.batching import (
    Arrange,
    longest_first,
    num_in_batch,
    pack,
    pad,
    padded_batches,
)
from caskd.models.devices import default_device, fixed_kernels, memory_errors, pick_device
from caskd.models.digests import config_digest, may_be_same_config, weights_digest
from caskd.models.head_forms import head_form
from caskd.models.opening import (
    ADAPTER_WEIGHTS,
    build_model,
    locate,
    open_adapter,
    open_config,
    open_model,
    open_tokenizer,
)
from caskd.models.split_model import SplitModel, check_split, is_same_together
from caskd.models.vocabulary import check_vocabulary

__all__ = [
    "ADAPTER_WEIGHTS",
    "Arrange",
    "SplitModel",
    "build_model",
    "check_split",
    "check_vocabulary",
    "config_digest",
    "default_device",
    "fixed_kernels",
    "head_form",
    "is_same_together",
    "locate",
    "longest_first",
    "may_be_same_config",
    "memory_errors",
    "num_in_batch",
    "open_adapter",
    "open_config",
    "open_model",
    "open_tokenizer",
    "pack",
    "pad",
    "padded_batches",
    "pick_device",
    "weights_digest",
]
