"""A peft adapter on the teacher: found, digested, and put onto the model for inference.

It is not merged into the weights: in bfloat16 that would round away a part of it.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caskd.models import weights_digest
from caskd.store.errors import UsageError
from caskd.store.format import canonical_json

WEIGHTS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"


@dataclass(frozen=True)
class AdapterSource:
    """An adapter on this machine."""

    folder: Path
    name: str
    """Last folder name, or hub id: never a path."""
    digest: str
    """sha256 over its weights and settings, without the place of the model that it was made for."""

    @property
    def identity(self) -> dict[str, str]:
        """What a store says of it."""
        return {"name": self.name, "digest": self.digest}


def describe_adapter(folder: Path, name: str) -> AdapterSource:
    """Read what can be said of an adapter without a model.

    Raises:
        UsageError: no adapter in safetensors, or one that changes the input rather than the model.
    """
    for file in (WEIGHTS, SETTINGS):
        if not (folder / file).is_file():
            raise UsageError(
                f"adapter {name!r} has no {file}; expected a peft adapter in safetensors: save it "
                "with save_pretrained, or give another --adapter"
            )
    settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    settings.pop("base_model_name_or_path", None)
    if settings.get("num_virtual_tokens") is not None:
        raise UsageError(
            f"adapter {name!r} is of type {settings.get('peft_type')}, which adds tokens to the "
            "input; expected one that changes layers, such as LORA: give another --adapter"
        )
    parts = weights_digest(folder).encode() + b"\n" + canonical_json(settings)
    return AdapterSource(folder, name, hashlib.sha256(parts).hexdigest())


def apply_adapter(model: Any, adapter: AdapterSource) -> Any:
    """The model with the adapter's layers inside.

    Raises:
        UsageError: peft is not installed, or the adapter is not one for this model.
    """
    try:
        from peft import PeftModel, get_peft_model_state_dict
    except ImportError as error:
        raise UsageError(
            "--adapter needs peft, which is not installed; type pip install 'caskd[lora]'"
        ) from error
    from safetensors import safe_open

    try:
        adapted = PeftModel.from_pretrained(model, adapter.folder)
    except (ValueError, RuntimeError, KeyError, TypeError) as error:
        raise _does_not_fit(adapter, " ".join(str(error).split())[:200]) from error
    with safe_open(adapter.folder / WEIGHTS, framework="pt") as weights:
        there = set(weights.keys())
    # peft leaves weights that it finds no place for out, and those that are missing random.
    differing = there ^ set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    if differing:
        raise _does_not_fit(adapter, f"{len(differing)} weights differ, such as {min(differing)!r}")
    return adapted.get_base_model()


def _does_not_fit(adapter: AdapterSource, reason: str) -> UsageError:
    return UsageError(
        f"adapter {adapter.name!r} does not fit the teacher ({reason}); expected the model that it "
        "was trained on: give another --adapter or --teacher"
    )
