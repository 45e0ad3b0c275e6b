"""Resolve the teacher checkpoint (folder or hub id, config, tokenizer) without loading weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caskd.models import (
    SplitModel,
    build_model,
    check_quantization,
    locate,
    open_config,
    open_tokenizer,
    quantization_of,
)
from caskd.precompute.teacher.lora import AdapterSource, describe_adapter
from caskd.store.errors import UsageError

FLAG = "--teacher"
_NO_LIMIT = 1_000_000_000  # transformers' value for a tokenizer without a limit is 10^30


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


def find_checkpoint(
    teacher: str,
    dtype: str,
    *,
    adapter: str | None = None,
    attention: str = "auto",
    device_map: str | None = None,
) -> TransformersCheckpoint:
    """Locate a teacher and read its config and tokenizer.

    Raises:
        UsageError: no such folder or hub id, no causal LM, no tokenizer, or no safetensors.
    """
    found = locate(teacher, FLAG)
    if not list(found.folder.glob("*.safetensors")):
        raise UsageError(
            f"{FLAG} {teacher}: no .safetensors file; expected a transformers checkpoint in "
            f"safetensors; convert it with save_pretrained, or pass another {FLAG}"
        )
    config = open_config(found.folder, FLAG)
    check_quantization(config, f"{FLAG} {teacher}")
    tokenizer = open_tokenizer(found.folder, FLAG)
    model = build_model(config, FLAG, device="meta")
    text_config = config.get_text_config()
    own_dtype = getattr(text_config, "dtype", None) or "float32"
    own_attention = str(getattr(model.config, "_attn_implementation", None))
    return TransformersCheckpoint(
        folder=found.folder,
        name=found.name,
        revision=found.revision,
        tokenizer=tokenizer,
        num_ids=SplitModel(model, FLAG).num_ids,
        load_dtype=str(own_dtype).removeprefix("torch.") if dtype == "auto" else dtype,
        attention=own_attention if attention == "auto" else attention,
        max_length=length_limit(text_config, tokenizer),
        quantization=quantization_of(config),
        adapter=None if adapter is None else find_adapter(adapter),
        device_map=device_map,
    )


def length_limit(text_config: Any, tokenizer: Any) -> int | None:
    """Tokens that a model and its tokenizer take; None without a limit."""
    tokenizer_limit = getattr(tokenizer, "model_max_length", None) or _NO_LIMIT
    own_limit = getattr(text_config, "max_position_embeddings", None) or _NO_LIMIT
    # XLNet has -1 for no limit.
    limit = min(own_limit if own_limit > 0 else _NO_LIMIT, tokenizer_limit)
    return limit if limit < _NO_LIMIT else None


def find_adapter(adapter: str) -> AdapterSource:
    """Locate a peft adapter and compute its digest.

    Raises:
        UsageError: no such folder or hub id, or no adapter in safetensors.
    """
    found = locate(adapter, "--adapter")
    return describe_adapter(found.folder, found.name)
