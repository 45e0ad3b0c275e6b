"""Train low-rank adapters with peft; the student's own weights stay frozen.

peft changes the model in place, so that its body and head stay where they are.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caskd.store.errors import UsageError, reason
from caskd.store.imports import require

_FLAG = "--lora-rank"
_ADAPTED = (".base_layer", ".original_module")
"""Names that peft gives to a module inside the one with an adapter, or with a copy of it."""


@dataclass(frozen=True)
class LoraOptions:
    """Shape of the adapters; `alpha` / `rank` is their scale."""

    rank: int
    alpha: float
    targets: tuple[str, ...]


def lora_options(config: Mapping[str, Any]) -> LoraOptions | None:
    """The adapters in a run's options (as JSON); None if the run trains all weights.

    Raises:
        UsageError: peft is not installed.
    """
    rank, alpha = config["lora_rank"], config["lora_alpha"]
    if rank is None:
        return None
    require("peft", extra="lora", needed_by=_FLAG)
    return LoraOptions(rank, 2.0 * rank if alpha is None else alpha, tuple(config["lora_targets"]))


def add_adapters(model: Any, options: LoraOptions, base: str) -> Any:
    """Add new adapters to a causal LM, in place, and freeze its other weights.

    Args:
        model: the causal LM.
        options: shape of the adapters.
        base: folder or hub id of the model; an adapter that is exported alone refers to it.

    Returns:
        peft's wrapper of the model.

    Raises:
        UsageError: no module has the name of a target, or the head, or a module that shares its
            weight with another one, is among the targets.
    """
    peft = require("peft", extra="lora", needed_by=_FLAG)
    targets = options.targets[0] if options.targets == ("all-linear",) else list(options.targets)
    config = peft.LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,
        target_modules=targets,
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
    )
    head = model.get_output_embeddings()
    try:
        with warnings.catch_warnings():  # of what is refused below, or of peft's own code
            warnings.simplefilter("ignore")
            wrapped = peft.get_peft_model(model, config)
    except ValueError as error:
        raise UsageError(
            f"--lora-targets {' '.join(options.targets)}: {reason(error)}; expected names of the "
            "model's linear layers, or all-linear; pass one of these"
        ) from None
    if model.get_output_embeddings() is not head:
        raise UsageError(
            f"--lora-targets {' '.join(options.targets)}: includes the output head, whose weight "
            "the loss reads directly; expected layers of the body; omit the head"
        )
    if (shared := shared_adapter(model)) is not None:
        raise UsageError(
            f"--lora-targets {' '.join(options.targets)}: {shared[0]} shares its weight with "
            f"{shared[1]}, and merged adapters would change both; expected modules with weights of "
            f"their own; omit {shared[0].rpartition('.')[2]}"
        )
    return wrapped


def shared_adapter(model: Any) -> tuple[str, str] | None:
    """Names of a module with an adapter, and of another one that has the same weight (tied).

    peft adapts such a module alone. Merging its adapter, or saving its copy, changes the other.
    """
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for weight in module.parameters(recurse=False):
            owners.setdefault(id(weight), []).append(name)
    for names in owners.values():
        adapted = [name for name in names if name.endswith(_ADAPTED)]
        if adapted and len(names) > 1:
            other = next(name for name in names if name != adapted[0])
            return adapted[0].rpartition(".")[0], other
    return None


def merged(wrapped: Any) -> Any:
    """The model without adapters, which are merged into its weights."""
    return wrapped.merge_and_unload(safe_merge=True)


def save_adapter(wrapped: Any, directory: Path) -> None:
    """Write the adapters alone, in peft's format."""
    wrapped.save_pretrained(directory)
