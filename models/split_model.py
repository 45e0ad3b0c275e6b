"""Where a causal LM keeps its body and head, and what it does to logits after the head.

Legend: B examples of a batch, L padded length, N rows, H hidden, V vocabulary.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from caskd.models.batching import Arrange, Batch
from caskd.store.errors import UsageError

Places = npt.NDArray[np.integer[Any]]


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
        self._model = model
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

    @property
    def device(self) -> torch.device:
        """Where inputs go: with the model on several devices, its first."""
        places = getattr(self._model, "hf_device_map", {}).values()
        numbers = [place for place in places if place not in ("cpu", "disk")]
        if numbers:
            return torch.device(numbers[0])
        # With weights on disk, parameters are on `meta` until they are used.
        own: torch.device = self._model.device
        return torch.device("cpu") if own.type == "meta" else own

    def hidden(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        """Last hidden states [B, L, H] of a batch [B, L]; see `packing` for the two kinds of it."""
        offered = {"position_ids": position_ids, "use_cache": False}
        accepted = {name: value for name, value in offered.items() if name in self._accepted}
        result: Tensor = self.body(input_ids=input_ids, **accepted).last_hidden_state
        return result

    def hidden_rows(self, batch: Batch, places: Sequence[Places]) -> Tensor:
        """Hidden states [N, H] at some places of each sequence of a batch, one after the other."""
        device = self.device
        hidden = self.hidden(
            torch.from_numpy(batch.input_ids).to(device),
            torch.from_numpy(batch.position_ids).to(device),
        ).flatten(0, 1)
        flat = np.concatenate([s + own for s, own in zip(batch.starts, places, strict=True)])
        return hidden[torch.from_numpy(flat).to(hidden.device)]

    def logits(self, hidden: Tensor, num_columns: int) -> Tensor:
        """Logits [N, V] in float32 of hidden states [N, H], the embedding's padding cut off."""
        return self.adjusted(self.head(hidden), num_columns)

    def adjusted(self, product: Tensor, num_columns: int) -> Tensor:
        """Logits [N, V] in float32 of what the head gave."""
        return adjust_logits(product[:, :num_columns].float(), self.config)


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
    input_ids = (torch.arange(8, device=split.device) % num_columns)[None]
    positions = torch.arange(8, device=split.device)[None]
    whole = model(input_ids=input_ids).logits[0, :, :num_columns].float()
    ours = split.logits(split.hidden(input_ids, positions)[0], num_columns).to(whole.device)
    error, size = float((whole - ours).abs().max()), float(whole.abs().max())
    if error > (1e-4 if is_float32(model) else 5e-2) * max(size, 1.0):
        raise UsageError(
            f"teacher architecture {type(model).__name__} gives other logits as a whole than from "
            f"its head (off by {error:.3g}), expected the same: give another --teacher"
        )


@torch.inference_mode()
def is_same_together(split: SplitModel, arrange: Arrange, num_columns: int) -> bool:
    """Whether three sequences in one batch give what each gives alone, up to rounding.

    They do not where padding is seen by the tokens before it, or where an example that is packed
    sees the one before. The mean says so; a maximum would also find experts that rounding chose.
    """
    numbers = np.arange(20, dtype=np.uint32) % num_columns
    sequences = [numbers[:5], numbers[5:13], numbers[13:16]]
    places = [np.arange(len(tokens)) for tokens in sequences]
    together = split.hidden_rows(arrange(sequences), places).float()
    alone = torch.cat(
        [
            split.hidden_rows(arrange([tokens]), [own]).float()
            for tokens, own in zip(sequences, places, strict=True)
        ]
    )
    limit = 1e-3 if is_float32(split.body) else 5e-2
    # Written so that NaN passes: a teacher that gives it has rows of its own for that.
    return not bool((together - alone).abs().mean() > limit * alone.abs().mean())


def is_float32(model: nn.Module) -> bool:
    """Whether a model computes in float32, so that two ways of computing agree closely."""
    return next(model.parameters()).dtype == torch.float32
