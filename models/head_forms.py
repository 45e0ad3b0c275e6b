"""Operations that an architecture applies between the head's product and its logits.

The table below is the only list of them: capture, next-token evaluation and the training loss read
it. `check_split` compares its result with the whole model, so that a missing entry is an error and
never a wrong logit.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

Operation = Literal["divide", "multiply", "cap"]

GENERAL: Mapping[str, Operation] = {
    "logits_scaling": "divide",  # Granite
    "logit_scale": "multiply",  # Cohere
    "final_logit_softcapping": "cap",  # Gemma 2 and 3
}
"""What each key of a model's config does to the logits, whatever the architecture."""

BY_MODEL_TYPE: Mapping[str, Mapping[str, Operation]] = {
    "falcon_h1": {"lm_head_multiplier": "multiply"},
    "hyperclovax": {"logits_scaling": "multiply"},
    "recurrent_gemma": {"logits_soft_cap": "cap"},
}
"""Keys of single architectures by `config.model_type`; such an entry replaces the general one."""


@dataclass(frozen=True)
class HeadForm:
    """The operations of one model, in this order: divide, multiply, soft cap."""

    divisor: float | None = None
    multiplier: float | None = None
    softcap: float | None = None
    """Logits become softcap * tanh(logits / softcap)."""

    @property
    def is_identity(self) -> bool:
        """Whether the logits are the head's product itself."""
        return self == HeadForm()

    @property
    def scale(self) -> float | None:
        """The one factor that stands for `divisor` and `multiplier`."""
        if self.divisor is None:
            return self.multiplier
        return (1.0 if self.multiplier is None else self.multiplier) / self.divisor

    def logits(self, product: Tensor) -> Tensor:
        """Logits [N, V] of the head's product [N, V]."""
        if self.divisor is not None:
            product = product / self.divisor
        if self.multiplier is not None:
            product = product * self.multiplier
        if self.softcap is not None:
            product = torch.tanh(product / self.softcap) * self.softcap
        return product


def head_form(config: Any) -> HeadForm:
    """The operations that a transformers config describes; those of its text model, if nested."""
    config = config.get_text_config()
    own = BY_MODEL_TYPE.get(getattr(config, "model_type", ""), {})
    found: dict[Operation, float] = {}
    for key, operation in {**GENERAL, **own}.items():
        value = getattr(config, key, None)
        if value is not None:
            found[operation] = value
    return HeadForm(found.get("divide"), found.get("multiply"), found.get("cap"))
