"""Where a teacher's weights go, and loading them there."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from caskd.precompute.adapter import apply_adapter
from caskd.precompute.checkpoint import TeacherSource
from caskd.store.errors import UsageError

# What the CPU's allocator says, and cuBLAS where memory runs out under its own work space.
_OUT_OF_MEMORY = ("not enough memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")


def pick_device(name: str) -> torch.device:
    """The device that a flag names.

    Raises:
        UsageError: no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, number = name.partition(":")
    if name != "cpu" and not (kind == "cuda" and (number.isdecimal() or name == "cuda")):
        raise UsageError(f"got --device {name}, expected auto, cpu, cuda or cuda:N")
    if kind == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"got --device {name}, but there is no CUDA device; use --device cpu")
    if number and int(number) >= torch.cuda.device_count():
        last = torch.cuda.device_count() - 1
        raise UsageError(f"got --device {name}, expected cuda:0 to cuda:{last}: give another")
    return torch.device(name)


def load_model(source: TeacherSource, device: torch.device) -> Any:
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


def _open_model(source: TeacherSource) -> Any:
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


@contextmanager
def fixed_kernels(on: bool) -> Iterator[None]:
    """Deterministic kernels while inside; as it was before, afterwards."""
    before = torch.are_deterministic_algorithms_enabled()
    if on:  # read by cuBLAS when it starts; without it torch refuses its matrix products
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(on or before)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@contextmanager
def memory_errors() -> Iterator[None]:
    """Turn every kind of running out of memory into MemoryError."""
    try:
        yield
    except RuntimeError as error:
        named = any(words in str(error) for words in _OUT_OF_MEMORY)
        if not (named or isinstance(error, torch.OutOfMemoryError)):
            raise
        reason = str(error).splitlines()[0]
    else:
        return
    # Outside the handler, so that no frame of the failed pass keeps its tensors alive.
    torch.cuda.empty_cache()
    raise MemoryError(reason)
