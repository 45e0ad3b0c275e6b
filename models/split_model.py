"""A causal LM as body and head, and the check that the two halves equal the whole.

Legend: B examples of a batch, L padded length, N rows, H hidden, V vocabulary.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from caskd.models.batching import Batch
from caskd.models.devices import to_device
from caskd.models.head_forms import head_form
from caskd.models.length_borders import forget_lengths, length_borders
from caskd.models.padded_positions import one_sequence_a_line
from caskd.store.errors import UsageError

Positions = npt.NDArray[np.integer[Any]]


class SplitModel:
    """A causal LM in two halves, so that logits are computed only for the rows that need them.

    Args:
        model: the causal LM.
        flag: the option that named the model, such as `--teacher`; errors start with it.

    Raises:
        UsageError: the model has no separate body and head.
    """

    def __init__(self, model: Any, flag: str) -> None:
        body, head = getattr(model, model.base_model_prefix, None), model.get_output_embeddings()
        if body is None or body is model or head is None:
            raise UsageError(
                f"{flag}: {type(model).__name__} has no separate body and head; expected a causal "
                f"language model; pass another model"
            )
        self.flag = flag
        self.body: nn.Module = body
        self.head: nn.Module = head
        self.form = head_form(model.config)
        self._model = model
        self._accepted = inspect.signature(body.forward).parameters
        self.config: Any = model.config
        self.architecture = type(model).__name__
        self.borders = length_borders(model.config)

    @property
    def num_ids(self) -> int:
        """Ids that the model can both read and predict."""
        embedding: Any = self._model.get_input_embeddings()
        head: Any = self.head
        return int(min(embedding.weight.shape[0], head.weight.shape[0]))

    @property
    def device(self) -> torch.device:
        """The device of the inputs; if the model spans several devices, the first of them."""
        layout = getattr(self._model, "hf_device_map", {}).values()
        devices = [device for device in layout if device not in ("cpu", "disk")]
        if devices:
            return torch.device(devices[0])
        # Parameters that accelerate keeps on disk are on `meta` until they are used.
        own: torch.device = self._model.device
        return torch.device("cpu") if own.type == "meta" else own

    def hidden(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> Tensor:
        """Last hidden states [B, L, H] of token ids [B, L]; see `batching` for the two layouts."""
        offered = {
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "use_cache": False,
        }
        options = {
            name: value
            for name, value in offered.items()
            if value is not None and name in self._accepted
        }
        if self.borders.each is not None:
            forget_lengths(self.body)
        result: Tensor = self.body(input_ids=input_ids, **options).last_hidden_state
        return result

    def hidden_rows(self, batch: Batch, positions: Sequence[Positions]) -> Tensor:
        """Hidden states [N, H] at the given positions of each sequence, sequence by sequence."""
        device = self.device
        inputs, positions_there = (
            to_device(array, device) for array in (batch.input_ids, batch.position_ids)
        )
        with one_sequence_a_line(batch.is_padded):
            hidden = self.hidden(inputs, position_ids=positions_there).flatten(0, 1)
        flat = np.concatenate([s + own for s, own in zip(batch.starts, positions, strict=True)])
        return hidden[to_device(flat, hidden.device)]

    def logits(self, hidden: Tensor, num_columns: int | None = None) -> Tensor:
        """Logits [N, V] in float32 of hidden states [N, H], cut to the first `num_columns`."""
        return self.adjusted(self.head(hidden), num_columns)

    def narrow_logits(self, product: Tensor, num_columns: int | None = None) -> Tensor:
        """The logits [N, V] of `adjusted`, in the product's own dtype where that is exact."""
        if self.form.is_identity:
            return product[:, :num_columns]
        return self.adjusted(product, num_columns)

    def adjusted(self, product: Tensor, num_columns: int | None = None) -> Tensor:
        """Logits [N, V] in float32 of the head's product, cut to the first `num_columns`."""
        return self.form.logits(product[:, :num_columns].float())


@torch.no_grad()  # not inference_mode: training must be able to use tensors that a forward caches
def check_split(model: Any, split: SplitModel, num_columns: int | None = None) -> None:
    """Compare the logits of the two halves with those of the whole model, on eight tokens.

    Raises:
        UsageError: they differ: the architecture changes its logits in a way that is not in the
            table of head forms.
    """
    num_ids = split.num_ids if num_columns is None else num_columns
    input_ids = (torch.arange(8, device=split.device) % num_ids)[None]
    positions = torch.arange(8, device=split.device)[None]
    whole = model(input_ids=input_ids).logits[0, :, :num_columns].float()
    hidden = split.hidden(input_ids, position_ids=positions)[0]
    ours = split.logits(hidden, num_columns).to(whole.device)
    error, size = float((whole - ours).abs().max()), float(whole.abs().max())
    if error > (1e-4 if is_float32(model) else 5e-2) * max(size, 1.0):
        raise UsageError(
            f"{split.flag}: the logits that caskd computes from the hidden states of "
            f"{type(model).__name__} differ from the model's own by {error:.3g}; expected a head "
            "of one matrix with at most a bias, a scale and a soft cap; pass another model"
        )


def is_float32(model: nn.Module) -> bool:
    """Whether a model computes in float32, so that two ways of computing agree closely."""
    return next(model.parameters()).dtype == torch.float32
