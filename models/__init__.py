"""What caskd knows of transformers models: opening, digests, devices, body and head apart."""

from caskd.models.batch_groups import BatchGroups
from caskd.models.batching import (
    Arrange,
    LengthBorders,
    forget_lengths,
    length_borders,
    longest_first,
    num_in_batch,
    pack,
    pad,
    padded_batches,
)
from caskd.models.devices import (
    check_device_name,
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
from caskd.models.model_parts import inputs_of, num_embeddings, run_model
from caskd.models.model_text import (
    TEXT_FILE,
    ModelText,
    check_same_options,
    check_template,
    conversation_options,
)
from caskd.models.opening import (
    ADAPTER_WEIGHTS,
    build_model,
    check_openable,
    check_quantization,
    describe_quantization,
    locate,
    open_adapter,
    open_config,
    open_empty,
    open_generation_config,
    open_model,
    open_tokenizer,
    quantization_of,
)
from caskd.models.parameters import ParameterCount, count_parameters
from caskd.models.small_copies import check_class
from caskd.models.split_model import SplitModel, check_matrix, check_split
from caskd.models.vocabulary import check_vocabulary, stop_ids

__all__ = [
    "ADAPTER_WEIGHTS",
    "TEXT_FILE",
    "Arrange",
    "BatchGroups",
    "LengthBorders",
    "ModelText",
    "ParameterCount",
    "SplitModel",
    "arranged_groups",
    "build_model",
    "check_causal",
    "check_class",
    "check_device_name",
    "check_matrix",
    "check_openable",
    "check_quantization",
    "check_same_options",
    "check_split",
    "check_template",
    "check_vocabulary",
    "config_digest",
    "conversation_options",
    "count_parameters",
    "default_device",
    "describe_quantization",
    "fixed_kernels",
    "forget_lengths",
    "hidden_in_groups",
    "inputs_of",
    "length_borders",
    "locate",
    "longest_first",
    "masked_groups",
    "may_be_same_config",
    "memory_errors",
    "num_embeddings",
    "num_in_batch",
    "open_adapter",
    "open_config",
    "open_empty",
    "open_generation_config",
    "open_model",
    "open_tokenizer",
    "pack",
    "pad",
    "padded_batches",
    "pick_device",
    "probe_tokens",
    "quantization_of",
    "run_model",
    "stop_ids",
    "to_device",
    "weights_digest",
]
