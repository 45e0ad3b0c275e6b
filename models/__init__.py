"""What caskd knows of transformers models: opening, digests, devices, body and head apart."""

from caskd.models.batch_groups import BatchGroups
from caskd.models.batching import (
    Arrange,
    longest_first,
    num_in_batch,
    pack,
    pad,
    padded_batches,
)
from caskd.models.devices import (
    default_device,
    fixed_kernels,
    memory_errors,
    pick_device,
    to_device,
)
from caskd.models.digests import config_digest, may_be_same_config, weights_digest
from caskd.models.forward_probe import (
    arranged_groups,
    check_causal,
    hidden_in_groups,
    masked_groups,
    probe_tokens,
)
from caskd.models.head_forms import head_form
from caskd.models.length_borders import LengthBorders, forget_lengths, length_borders
from caskd.models.opening import (
    ADAPTER_WEIGHTS,
    build_model,
    locate,
    open_adapter,
    open_config,
    open_generation_config,
    open_model,
    open_tokenizer,
)
from caskd.models.parameters import ParameterCount, count_parameters
from caskd.models.quantization import (
    check_quantization,
    describe_quantization,
    quantization_of,
)
from caskd.models.split_model import SplitModel, check_split
from caskd.models.vocabulary import check_template, check_vocabulary, stop_ids

__all__ = [
    "ADAPTER_WEIGHTS",
    "Arrange",
    "BatchGroups",
    "LengthBorders",
    "ParameterCount",
    "SplitModel",
    "arranged_groups",
    "build_model",
    "check_causal",
    "check_quantization",
    "check_split",
    "check_template",
    "check_vocabulary",
    "config_digest",
    "count_parameters",
    "default_device",
    "describe_quantization",
    "fixed_kernels",
    "forget_lengths",
    "head_form",
    "hidden_in_groups",
    "length_borders",
    "locate",
    "longest_first",
    "masked_groups",
    "may_be_same_config",
    "memory_errors",
    "num_in_batch",
    "open_adapter",
    "open_config",
    "open_generation_config",
    "open_model",
    "open_tokenizer",
    "pack",
    "pad",
    "padded_batches",
    "pick_device",
    "probe_tokens",
    "quantization_of",
    "stop_ids",
    "to_device",
    "weights_digest",
]
