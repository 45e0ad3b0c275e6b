"""Low-rank adapters through peft: the student's own weights stay as they are.

peft puts them into the model in place, so that body and head are found where they always are.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caskd.store.errors import UsageError


@dataclass(frozen=True)
class LoraOptions:
    """What makes the adapters; `alpha` / `rank` is their scale."""

    rank: int
    alpha: float
    targets: tuple[str, ...]


def lora_options(config: Mapping[str, Any]) -> LoraOptions | None:
    """The adapters of a run's options (as JSON); None where it trains all weights.

    Raises:
        UsageError: peft is not installed.
    """
    rank, alpha = config["lora_rank"], config["lora_alpha"]
    if rank is None:
        return None
    _peft()
    return LoraOptions(rank, 2.0 * rank if alpha is None else alpha, tuple(config["lora_targets"]))


def add_adapters(model: Any, options: LoraOptions, base: str) -> Any:
    """Put fresh adapters into a causal LM and freeze all the rest.

    Args:
        base: where the model came from, which an adapter that is exported alone names.

    Returns:
        peft's wrapper; the model itself has the adapters in it, too.

    Raises:
        UsageError: no module has such a name, or the head is among the targets.
    """
    peft = _peft()
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
        with warnings.catch_warnings():  # of what is refused below, or is peft's own to mend
            warnings.simplefilter("ignore")
            wrapped = peft.get_peft_model(model, config)
    except ValueError as error:
        first = str(error).strip().splitlines()[0]
        raise UsageError(f"--lora-targets {' '.join(options.targets)}: {first}") from None
    if model.get_output_embeddings() is not head:
        raise UsageError(
            "--lora-targets: the head is among them, whose weight the loss reads as it stands. "
            "Leave it out."
        )
    return wrapped


def merged(wrapped: Any) -> Any:
    """The plain model with the adapters added to its weights."""
    return wrapped.merge_and_unload(safe_merge=True)


def save_adapter(wrapped: Any, directory: Path) -> None:
    """Write the adapters alone, as peft reads them."""
    wrapped.save_pretrained(directory)


def _peft() -> Any:
    try:
        import peft
    except ImportError:
        raise UsageError("--lora-rank needs peft: pip install 'caskd[lora]'.") from None
    return peft
