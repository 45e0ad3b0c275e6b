"""Where a teacher's weights go, and loading them there."""

from typing import Any

import torch

from caskd.models import memory_errors
from caskd.precompute.teacher.lora import apply_adapter
from caskd.precompute.teacher.source import TransformersCheckpoint
from caskd.store.errors import UsageError


def load_model(source: TransformersCheckpoint, device: torch.device) -> Any:
    """Load the weights, for inference only and never with code from the checkpoint.

    Raises:
        UsageError: weights are missing (transformers would fill them with random numbers), they
            do not fit into memory, or the attention implementation is not there or cannot compute
            in their dtype.
    """
    if source.attention.startswith("flash") and source.load_dtype == "float32":
        raise UsageError(
            f"got --attention {source.attention} for a teacher in float32, which it cannot compute "
            "in; expected a half precision: type --dtype bfloat16, or --attention sdpa"
        )
    try:
        with memory_errors():
            model = _open_model(source)
            if source.adapter is not None:
                model = apply_adapter(model, source.adapter)
            if source.device_map is None:
                model = model.to(device)
    except MemoryError as error:
        raise UsageError(
            f"teacher {source.name!r} in {source.load_dtype} does not fit on {device} ({error}); "
            "expected a device with room: type --device-map auto to use all, or --dtype bfloat16"
        ) from error
    return model.requires_grad_(False).eval()


def _open_model(source: TransformersCheckpoint) -> Any:
    from transformers import AutoModelForCausalLM

    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            source.folder,
            dtype=getattr(torch, source.load_dtype),
            attn_implementation=source.attention,
            device_map=source.device_map,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (ImportError, ValueError) as error:  # of transformers, when it looks at the options
        reason = " ".join(str(error).split())[:200]
        raise UsageError(
            f"teacher {source.name!r} does not load with attention {source.attention} ({reason}); "
            "expected one that is installed and that it has: type --attention sdpa or eager"
        ) from error
    if report["missing_keys"]:
        raise UsageError(
            f"teacher {source.name!r} lacks {len(report['missing_keys'])} weights, the first "
            f"{min(report['missing_keys'])!r}; expected a whole checkpoint: fetch it again"
        )
    return model
