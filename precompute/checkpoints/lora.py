"""A peft adapter of the teacher: a checkpoint of layers on top of it, in safetensors."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from caskd.models import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    read_adapter_settings,
    weights_digest,
)
from caskd.store.errors import UsageError
from caskd.store.format import canonical_json
from caskd.store.io import escape_control


@dataclass(frozen=True)
class AdapterSource:
    """An adapter on this machine."""

    folder: Path
    name: str
    """Last folder name, or hub id: never a path."""
    digest: str
    """sha256 over its weights and settings, without the path of its base model."""

    @property
    def identity(self) -> dict[str, str]:
        """The adapter's entry in the identity of a store."""
        return {"name": self.name, "digest": self.digest}


def describe_adapter(folder: Path, name: str) -> AdapterSource:
    """Read an adapter's settings and compute its digest; needs no model.

    Raises:
        UsageError: no adapter in safetensors, settings that cannot be followed, or one that changes
            the input instead of the model.
    """
    for file in (ADAPTER_WEIGHTS, ADAPTER_CONFIG):
        if not (folder / file).is_file():
            raise UsageError(
                f"--adapter {name}: no {file}; expected a peft adapter in safetensors; save it "
                "with save_pretrained, or pass another --adapter"
            )
    settings = read_adapter_settings(folder, f"--adapter {name}")
    settings.pop("base_model_name_or_path", None)
    if settings.get("num_virtual_tokens") is not None:
        kind = escape_control(str(settings.get("peft_type")))
        raise UsageError(
            f"--adapter {name}: its type {kind} adds tokens to the input"
            "; expected an adapter that changes layers, such as LORA; pass another --adapter"
        )
    parts = weights_digest(folder).encode() + b"\n" + canonical_json(settings)
    return AdapterSource(folder, name, hashlib.sha256(parts).hexdigest())
