"""Who the teacher is, found out before any weight is loaded."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caskd.precompute.teacher.lora import AdapterSource, describe_adapter
from caskd.store.errors import UsageError

_PATTERNS = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]
_NO_LIMIT = 1_000_000_000  # tokenizers without a limit of their own say 10^30


@dataclass(frozen=True)
class TransformersCheckpoint:
    """A checkpoint on this machine and what can be said of it without its weights."""

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
    """Locate a teacher and read its configuration and tokenizer.

    Raises:
        UsageError: no such folder or hub id, no causal LM, no tokenizer, or no safetensors.
    """
    folder, name, revision = _locate(teacher, "teacher")
    if not list(folder.glob("*.safetensors")):
        raise UsageError(
            f"teacher {teacher!r} has no .safetensors file; expected a transformers checkpoint in "
            "safetensors: convert it with save_pretrained, or give another --teacher"
        )
    config, tokenizer, split, default_attention = _describe(folder, teacher)
    own = getattr(config, "dtype", None) or "float32"
    tokenizer_limit = getattr(tokenizer, "model_max_length", None) or _NO_LIMIT
    limits = [getattr(config, "max_position_embeddings", None) or _NO_LIMIT, tokenizer_limit]
    return TransformersCheckpoint(
        folder=folder,
        name=name,
        revision=revision,
        tokenizer=tokenizer,
        num_ids=split.num_ids,
        load_dtype=str(own).removeprefix("torch.") if dtype == "auto" else dtype,
        attention=default_attention if attention == "auto" else attention,
        max_length=min(limits) if min(limits) < _NO_LIMIT else None,
        adapter=None if adapter is None else find_adapter(adapter),
        device_map=device_map,
    )


def find_adapter(adapter: str) -> AdapterSource:
    """Locate a peft adapter and digest it.

    Raises:
        UsageError: no such folder or hub id, or no adapter in safetensors.
    """
    folder, name, _revision = _locate(adapter, "adapter")
    return describe_adapter(folder, name)


def _locate(place: str, kind: str) -> tuple[Path, str, str | None]:
    """Folder, name and revision of what `--teacher` or `--adapter` names."""
    folder = Path(place)
    if folder.is_dir():
        return folder, folder.resolve().name, None
    if place.count("/") > 1 or place.startswith((".", "/", "~")):
        raise UsageError(f"no {kind} folder {place!r}; expected a folder or a hub id: --{kind}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        snapshot = Path(snapshot_download(place, allow_patterns=_PATTERNS))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise UsageError(
            f"no {kind} {place!r}: no such folder, and the hub gave {type(error).__name__}; "
            f"expected a folder or a hub id: check --{kind} and the connection"
        ) from error
    return snapshot, place, snapshot.name  # the cache names a snapshot by its commit


def _describe(folder: Path, teacher: str) -> tuple[Any, Any, Any, str]:
    """Configuration, tokenizer, the model's halves without weights, and its attention."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from caskd.models import SplitModel

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(
            f"teacher {teacher!r} does not open ({reason}); expected a causal language model with "
            "its tokenizer, in safetensors and without code of its own: give another --teacher"
        ) from error
    attention = str(getattr(model.config, "_attn_implementation", None))
    return config.get_text_config(), tokenizer, SplitModel(model), attention
