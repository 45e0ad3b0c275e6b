"""Open checkpoints safely: safetensors only, no code from the checkpoint, no random weights.

Every `from_pretrained` and `from_config` of caskd is in this folder.
"""

from caskd.models.opening.adapters import read_adapter_settings
from caskd.models.opening.configs import (
    load_dtype_of,
    open_config,
    open_generation_config,
    open_tokenizer,
)
from caskd.models.opening.locating import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    check_openable,
    check_safetensors,
    config_folder,
    locate,
)
from caskd.models.opening.quantization import (
    check_quantization,
    describe_quantization,
    quantization_of,
)
from caskd.models.opening.tensor_parallel import check_divisible, rank_parameters
from caskd.models.opening.weights import build_model, open_adapter, open_empty, open_model

__all__ = [
    "ADAPTER_CONFIG",
    "ADAPTER_WEIGHTS",
    "build_model",
    "check_divisible",
    "check_openable",
    "check_quantization",
    "check_safetensors",
    "config_folder",
    "describe_quantization",
    "load_dtype_of",
    "locate",
    "open_adapter",
    "open_config",
    "open_empty",
    "open_generation_config",
    "open_model",
    "open_tokenizer",
    "quantization_of",
    "rank_parameters",
    "read_adapter_settings",
]
