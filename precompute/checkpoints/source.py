"""Resolve the teacher checkpoint (folder or hub id, config, tokenizer) without loading weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from caskd.models import (
    SplitModel,
    check_class,
    check_divisible,
    check_quantization,
    check_safetensors,
    count_parameters,
    describe_quantization,
    load_dtype_of,
    locate,
    open_adapter,
    open_config,
    open_empty,
    open_tokenizer,
    quantization_of,
    rank_parameters,
)
from caskd.precompute.checkpoints.lora import AdapterSource, describe_adapter
from caskd.store.errors import UsageError
from caskd.store.imports import require

FLAG = "--teacher"
_UNPACKED = frozenset({"compressed-tensors"})
"""Methods whose weights transformers unpacks, so that they take as much as others in memory."""
_NO_LIMIT = 1_000_000_000  # transformers' value for a tokenizer without a limit is 10^30


@dataclass(frozen=True)
class WeightBytes:
    """Memory that a teacher's weights take, without activations."""

    num_parameters: int
    """Logical ones: a weight that is stored in 4 bits counts like one in 32."""
    num_active: int | None
    """Parameters that one token uses; None where the config of a mixture does not name them."""
    total: int
    per_device: int
    """With --tensor-parallel, of the rank that holds the most."""


@dataclass(frozen=True)
class TransformersCheckpoint:
    """A checkpoint on this machine, and its properties that need no weights."""

    folder: Path
    name: str
    """Last folder name, or hub id: never a path."""
    revision: str | None
    tokenizer: Any
    num_ids: int
    """Ids that the model can read and predict."""
    load_dtype: str
    attention: str
    max_length: int | None
    quantization: dict[str, Any] | None = None
    """Method and bits of quantised weights."""
    adapter: AdapterSource | None = None
    device_map: str | dict[str, str | int] | None = None
    """How transformers lays the model out over several devices; None for one device."""
    tensor_parallel: int = 1
    weights: WeightBytes | None = None


def find_checkpoint(
    teacher: str,
    dtype: str,
    *,
    adapter: str | None = None,
    attention: str = "auto",
    device_map: str | None = None,
    tensor_parallel: int = 1,
) -> TransformersCheckpoint:
    """Locate a teacher and read its config and tokenizer.

    Raises:
        UsageError: no such folder or hub id, no causal LM that caskd computes, no tokenizer, no
            safetensors or other weights than the config's, a quantiser or attention
            implementation that is not installed, or a model that cannot be divided.
    """
    found = locate(teacher, FLAG)
    check_safetensors(found.folder, f"{FLAG} {teacher}")
    config = open_config(found.folder, FLAG)
    check_quantization(config, f"{FLAG} {teacher}")
    tokenizer = open_tokenizer(found.folder, FLAG)
    text_config = config.get_text_config()
    load_dtype = load_dtype_of(text_config, dtype)
    _check_attention(attention, load_dtype)
    model = open_empty(
        found.folder, FLAG, attention=None if attention == "auto" else attention, name=found.name
    )
    found_adapter = None if adapter is None else find_adapter(adapter)
    if found_adapter is not None:
        model = open_adapter(model, found_adapter.folder, "--adapter", name=found_adapter.name)
    num_ids = SplitModel(model, FLAG).num_ids
    check_class(config, f"{FLAG} {found.name}")
    if tensor_parallel > 1:
        _check_divisible(model, config, tensor_parallel, f"{FLAG} {found.name}")
    own_attention = str(getattr(model.config, "_attn_implementation", None))
    used_attention = own_attention if attention == "auto" else attention
    _check_attention(used_attention, load_dtype)  # a config can name one, too
    return TransformersCheckpoint(
        folder=found.folder,
        name=found.name,
        revision=found.revision,
        tokenizer=tokenizer,
        num_ids=num_ids,
        load_dtype=load_dtype,
        attention=used_attention,
        max_length=length_limit(text_config, tokenizer),
        quantization=quantization_of(config),
        adapter=found_adapter,
        device_map=device_map,
        tensor_parallel=tensor_parallel,
        weights=weight_bytes(model, found.folder, load_dtype, tensor_parallel),
    )


def _check_divisible(model: Any, config: Any, num_ranks: int, subject: str) -> None:
    """Refuse a teacher that transformers cannot divide over so many ranks.

    Raises:
        UsageError: it is quantised, or its class has no plan or its heads no such divisor.
    """
    quantised = describe_quantization(config)
    if quantised is not None:
        raise UsageError(
            f"{subject}: its weights are quantised ({quantised}), which --tensor-parallel "
            f"{num_ranks} does not divide; expected weights that are not; omit "
            "--tensor-parallel, or serve the model and pass --backend server"
        )
    check_divisible(model, num_ranks, subject)


def weight_bytes(model: Any, folder: Path, load_dtype: str, num_ranks: int = 1) -> WeightBytes:
    """The memory of a model's weights.

    Args:
        model: with or without weights.
        folder: of the checkpoint, whose files are the size of quantised weights.
        load_dtype: of weights that are not quantised.
        num_ranks: ranks that divide them.
    """
    count = count_parameters(model)
    quantised = quantization_of(model.config)
    if quantised is None or quantised["method"] in _UNPACKED:
        size = getattr(torch, load_dtype).itemsize
        most = rank_parameters(model, num_ranks) if num_ranks > 1 else count.total
        return WeightBytes(count.total, count.active, size * count.total, size * most)
    stored = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return WeightBytes(count.total, count.active, stored, stored)


def length_limit(text_config: Any, tokenizer: Any) -> int | None:
    """Tokens that a model and its tokenizer take; None without a limit."""
    tokenizer_limit = getattr(tokenizer, "model_max_length", None) or _NO_LIMIT
    own_limit = getattr(text_config, "max_position_embeddings", None) or _NO_LIMIT
    # XLNet has -1 for no limit.
    limit = min(own_limit if own_limit > 0 else _NO_LIMIT, tokenizer_limit)
    return limit if limit < _NO_LIMIT else None


def _check_attention(attention: str, load_dtype: str) -> None:
    """Refuse an attention implementation that does not support the weights' dtype.

    Raises:
        UsageError: it does not.
    """
    if attention.startswith("flash") and load_dtype == "float32":
        raise UsageError(
            f"--attention {attention}: does not support a teacher in float32; expected half "
            "precision; pass --dtype bfloat16, or --attention sdpa"
        )


def find_adapter(adapter: str) -> AdapterSource:
    """Locate a peft adapter and compute its digest.

    Raises:
        UsageError: no such folder or hub id, no adapter in safetensors, or peft is not installed.
    """
    require("peft", extra="lora", needed_by="--adapter")
    found = locate(adapter, "--adapter", "adapter")
    return describe_adapter(found.folder, found.name)
