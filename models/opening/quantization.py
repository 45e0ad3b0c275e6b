"""Quantised checkpoints: the method and bits of their weights, and whether they can be opened."""

import re
from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any

from caskd.store.errors import UsageError, reason

_FIXED_BITS = {
    "fp8": 8,
    "fbgemm_fp8": 8,
    "mxfp8": 8,
    "eetq": 8,
    "mxfp4": 4,
    "nvfp4": 4,
    "bitnet": 2,
}
_BITS_KEYS = ("bits", "w_bit", "nbits", "num_bits")
_BITS_IN_NAME = (
    re.compile(r"(?:int|float|fp|nf)_?(\d+)_?weight", re.IGNORECASE),
    re.compile(r"(?:int|float|fp|nf)_?(\d+)", re.IGNORECASE),
)
_PACKAGES = {
    "awq": "gptqmodel",
    "eetq": "kernels",
    "fbgemm_fp8": "kernels",
    "gptq": "optimum gptqmodel",
    "quanto": "optimum-quanto",
    "quark": "amd-quark",
    "spqr": "spqr_quant",
}
"""What to install where its name is not the method's."""


def quantization_of(config: Any) -> dict[str, Any] | None:
    """Method and bits of a checkpoint's quantised weights; None if they are not quantised.

    `bits` is a list where layers differ, and None where the config does not name them.
    """
    values = _settings(config)
    if values is None:
        return None
    method = values.get("quant_method")
    method = str(getattr(method, "value", method) or "bitsandbytes")
    bits = sorted({*_bits(method, values)})
    return {"method": method, "bits": bits[0] if len(bits) == 1 else bits or None}


def describe_quantization(config: Any) -> str | None:
    """Method and bits for a message, such as `bitsandbytes, 4 bits`; None if not quantised."""
    found = quantization_of(config)
    if found is None:
        return None
    bits = found["bits"]
    shown = bits if isinstance(bits, list) else [bits]
    return str(found["method"]) + (f", {' and '.join(map(str, shown))} bits" if bits else "")


def check_quantization(config: Any, subject: str) -> None:
    """Refuse quantised weights that transformers cannot open here.

    transformers itself opens the weights of a method that it does not know as if they were not
    quantised, which leaves out their scales.

    Args:
        config: of the checkpoint.
        subject: the option and the checkpoint, for errors.

    Raises:
        UsageError: transformers does not know the method, or its package is not installed.
    """
    values = _settings(config)
    if values is None:
        return
    from transformers.quantizers.auto import AutoHfQuantizer, get_hf_quantizer

    described = describe_quantization(config)
    try:
        known = AutoHfQuantizer.supports_quant_method(values)
    except ValueError:  # without a method
        known = False
    if not known:
        raise UsageError(
            f"{subject}: its weights are quantised ({described}), which transformers cannot open; "
            "expected a method of transformers.quantizers; pass the model before quantisation"
        )
    try:
        copied = deepcopy(config)  # it is changed
        copied.quantization_config = dict(values)
        get_hf_quantizer(copied, None, None, weights_only=True, user_agent={})
    except ImportError as error:
        method = str((quantization_of(config) or {})["method"])
        raise UsageError(
            f"{subject}: its weights are quantised ({described}), and their package is missing or "
            f"too old ({reason(error)}); run pip install -U {_PACKAGES.get(method, method)}"
        ) from error
    except (ValueError, RuntimeError, TypeError):
        pass  # such as a GPU that is missing where a capture is planned: it is refused when opened


def _settings(config: Any) -> Mapping[str, Any] | None:
    found = getattr(config, "quantization_config", None)
    if found is None:
        found = getattr(config.get_text_config(), "quantization_config", None)
    return found if found is None or isinstance(found, Mapping) else found.to_dict()


def _bits(method: str, values: Mapping[str, Any]) -> Iterator[int]:
    """Bits of the weights, from whatever place a method has for them."""
    if method in _FIXED_BITS:
        yield _FIXED_BITS[method]
    elif method == "bitsandbytes":
        yield 4 if values.get("load_in_4bit") or values.get("_load_in_4bit") else 8
    elif method == "compressed-tensors":
        for group in (values.get("config_groups") or {}).values():
            yield from _number(group.get("weights") or {})
    elif any(isinstance(values.get(key), int) for key in _BITS_KEYS):
        yield from _number(values)
    elif method == "hqq":
        yield from _number(values.get("quant_config", {}).get("weight_quant_params") or {})
    else:  # such as quanto's weights "int4" and torchao's "Int4WeightOnlyConfig"
        named = (str(values.get(key, "")) for key in ("weights", "quant_type", "forward_dtype"))
        found = (pattern.search(name) for name in named for pattern in _BITS_IN_NAME)
        yield from [int(match.group(1)) for match in found if match][:1]


def _number(values: Mapping[str, Any]) -> Iterator[int]:
    yield from (values[key] for key in _BITS_KEYS if isinstance(values.get(key), int))
