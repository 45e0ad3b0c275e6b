"""Low-rank adapters through peft; the student's own weights are frozen.

peft inserts the adapters into the model in place, so body and head stay where they were.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caskd.store.errors import UsageError, reason
from caskd.store.imports import require


@dataclass(frozen=True)
class LoraOptions:
    """Options of the adapters; their scale is `alpha` / `rank`."""

    rank: int
    alpha: float
    targets: tuple[str, ...]


def lora_options(config: Mapping[str, Any]) -> LoraOptions | None:
    """The adapter options in a run's options (as JSON); None if the run trains all weights.

    Raises:
        UsageError: peft is not installed.
    """
    rank, alpha = config["lora_rank"], config["lora_alpha"]
    if rank is None:
        return None
    require("peft", extra="lora", needed_by="--lora-rank")
    return LoraOptions(rank, 2.0 * rank if alpha is None else alpha, tuple(config["lora_targets"]))


def add_adapters(model: Any, options: LoraOptions, base: str) -> Any:
    """Add new adapters to a causal LM and freeze all other weights.

    Args:
        base: path or hub id of the model, which an exported adapter refers to.

    Returns:
        peft's wrapper. `model` itself contains the adapters, too.

    Raises:
        UsageError: no module matches the targets, or the head does.
    """
    peft: Any = require("peft", extra="lora", needed_by="--lora-rank")
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
        with warnings.catch_warnings():  # peft warns of targets that are refused below
            warnings.simplefilter("ignore")
            wrapped = peft.get_peft_model(model, config)
    except ValueError as error:
        raise UsageError(
            f"--lora-targets {' '.join(options.targets)}: {reason(error)}; pass names of the "
            "student's linear modules, or omit --lora-targets for all of them"
        ) from None
    if model.get_output_embeddings() is not head:
        raise UsageError(
            f"--lora-targets {' '.join(options.targets)}: the targets include the head, but the "
            "loss reads its plain weight; remove the head from --lora-targets"
        )
    return wrapped


def merged(wrapped: Any) -> Any:
    """The plain model, with the adapters merged into its weights."""
    return wrapped.merge_and_unload(safe_merge=True)


def save_adapter(wrapped: Any, directory: Path) -> None:
    """Write only the adapters, in peft's format."""
    wrapped.save_pretrained(directory)
