"""Where a causal LM keeps its body and head, and what it does to logits after the head.

Legend: B examples of a batch, L padded length, N rows, H hidden, V vocabulary.
"""

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from caskd.store.errors import UsageError


class SplitModel:
    """A causal LM in two halves, so that logits are made only where they are wanted.

    Raises:
        UsageError: the model has no separate body and head.
    """

    def __init__(self, model: Any) -> None:
        body, head = getattr(model, model.base_model_prefix, None), model.get_output_embeddings()
        if body is None or body is model or head is None:
            raise UsageError(
                f"teacher architecture {type(model).__name__} has no separate body and head; "
                "expected a causal language model: give another --teacher"
            )
        self.body: nn.Module = body
        self.head: nn.Module = head
        self.config = model.config.get_text_config()
        self._accepted = inspect.signature(body.forward).parameters

    @property
    def num_ids(self) -> int:
        """Ids that the model can both read and predict."""
        embedding: Any = self.body.get_input_embeddings()  # type: ignore[operator]
        head: Any = self.head
        return int(min(embedding.weight.shape[0], head.weight.shape[0]))

    def hidden(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Last hidden states [B, L, H] of a batch [B, L] that is padded on the right."""
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        offered = {
            "attention_mask": attention_mask,
            "position_ids": positions.expand_as(input_ids),
            "use_cache": False,
        }
        accepted = {name: value for name, value in offered.items() if name in self._accepted}
        result: Tensor = self.body(input_ids=input_ids, **accepted).last_hidden_state
        return result

    def logits(self, hidden: Tensor, num_columns: int) -> Tensor:
        """Logits [N, V] in float32 of hidden states [N, H], the embedding's padding cut off."""
        return adjust_logits(self.head(hidden)[:, :num_columns].float(), self.config)


def adjust_logits(logits: Tensor, config: Any) -> Tensor:
    """What an architecture does after its head: Granite divides, Cohere scales, Gemma caps."""
    scaling = getattr(config, "logits_scaling", None)
    scale = getattr(config, "logit_scale", None)
    cap = getattr(config, "final_logit_softcapping", None)
    if scaling is not None:
        logits = logits / scaling
    if scale is not None:
        logits = logits * scale
    if cap is not None:
        logits = torch.tanh(logits / cap) * cap
    return logits


@torch.inference_mode()
def check_split(model: Any, split: SplitModel, num_columns: int) -> None:
    """Hold the two halves against the whole model on a few tokens.

    Raises:
        UsageError: they differ: the architecture does something to its logits that is not known.
    """
    input_ids = (torch.arange(8, device=model.device) % num_columns)[None]
    mask = torch.ones_like(input_ids)
    whole = model(input_ids=input_ids, attention_mask=mask).logits[0, :, :num_columns].float()
    ours = split.logits(split.hidden(input_ids, mask)[0], num_columns)
    exact = next(model.parameters()).dtype == torch.float32
    error, size = float((whole - ours).abs().max()), float(whole.abs().max())
    if error > (1e-4 if exact else 5e-2) * max(size, 1.0):
        raise UsageError(
            f"teacher architecture {type(model).__name__} gives other logits as a whole than from "
            f"its head (off by {error:.3g}), expected the same: give another --teacher"
        )
