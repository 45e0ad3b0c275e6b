"""A causal LM as body and head, and the check that the two halves equal the whole.

Legend: B examples of a batch, L padded length, N rows, H hidden, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from caskd.models.batching import Batch, forget_lengths, length_borders, one_sequence_a_line
from caskd.models.devices import to_device
from caskd.models.head_trial import form_and_width
from caskd.models.model_parts import (
    input_device,
    inputs_of,
    num_embeddings,
    output_head,
    output_logits,
    refusal,
    run_model,
)
from caskd.store.errors import UsageError

Positions = npt.NDArray[np.integer[Any]]


class SplitModel:
    """A causal LM in two halves, so that logits are computed only for the rows that need them.

    The hidden states are what the head receives in the model's own forward: layers, scales and
    changes of dtype before the head are the model's.

    Args:
        model: the causal LM; on device `meta`, its operations after the head are tried alone.
        flag: the option that named the model, such as `--teacher`; errors start with it.

    Raises:
        UsageError: the model has no head of one matrix, or changes the head's product in another
            way than by a scale, a soft cap and a cut of the last columns.
    """

    def __init__(self, model: Any, flag: str) -> None:
        self.flag = flag
        self.model = model
        self.architecture = type(model).__name__
        head = output_head(model)
        if head is None:
            raise refusal(model, flag, "has no separate body and head")
        self.head: nn.Module = head
        self.config: Any = model.config
        self.borders = length_borders(model.config)
        self.form, self.width = form_and_width(model, self.head, flag)

    @property
    def num_ids(self) -> int:
        """Ids that the model can both read and predict."""
        return min(num_embeddings(self.model, self.flag), self.width)

    @property
    def device(self) -> torch.device:
        """The device of the inputs."""
        device = input_device(self.model)
        # Parameters that accelerate keeps on disk are on `meta` until they are used.
        return torch.device("cpu") if device.type == "meta" else device

    def hidden(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> Tensor:
        """Last hidden states [B, L, H] of token ids [B, L]; see `batching` for the two layouts."""
        options = {"attention_mask": attention_mask, "position_ids": position_ids}
        if self.borders.each is not None:
            forget_lengths(self.model)
        with inputs_of(self.head) as caught:
            run_model(self.model, input_ids, **options)
        if len(caught) != 1 or caught[0].shape[:-1] != input_ids.shape:
            raise UsageError(
                f"{self.flag}: {self.architecture} does not call its head once with a state of "
                "each token; expected a causal language model; pass another model"
            )
        return caught[0]

    def hidden_rows(self, batch: Batch, positions: Sequence[Positions]) -> Tensor:
        """Hidden states [N, H] at the given positions of each sequence, sequence by sequence."""
        device, numbers = self.device, batch.position_ids
        inputs = to_device(batch.input_ids, device)
        positions_there = None if numbers is None else to_device(numbers, device)
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
            return product[:, : self._num_columns(num_columns)]
        return self.adjusted(product, num_columns)

    def adjusted(self, product: Tensor, num_columns: int | None = None) -> Tensor:
        """Logits [N, V] in float32 of the head's product, cut to the first `num_columns`."""
        return self.form.logits(product[:, : self._num_columns(num_columns)].float())

    def _num_columns(self, most: int | None) -> int:
        return self.width if most is None else min(most, self.width)

    @property
    def weight(self) -> Tensor:
        """The head's matrix [V, H], without rows whose logits the model cuts off."""
        weight: Tensor = self.head.weight  # type: ignore[assignment]
        return weight if len(weight) == self.width else weight[: self.width]

    @property
    def bias(self) -> Tensor | None:
        """The head's bias [V], if it has one."""
        bias: Tensor | None = getattr(self.head, "bias", None)
        return bias if bias is None or len(bias) == self.width else bias[: self.width]


@torch.no_grad()  # not inference_mode: training must be able to use tensors that a forward caches
def check_split(model: Any, split: SplitModel, num_columns: int | None = None) -> None:
    """Compare the logits of the two halves with those of the whole model, on eight tokens.

    Raises:
        UsageError: they differ.
    """
    num_ids = split.num_ids if num_columns is None else num_columns
    input_ids = (torch.arange(8, device=split.device) % num_ids)[None]
    whole = output_logits(run_model(model, input_ids))[0, :, :num_columns].float()
    hidden = split.hidden(input_ids)[0]
    ours = split.logits(hidden, num_columns).to(whole.device)
    error, size = float((whole - ours).abs().max()), float(whole.abs().max())
    if error > (1e-4 if is_float32(model) else 5e-2) * max(size, 1.0):
        raise UsageError(
            f"{split.flag}: the logits that caskd computes from the hidden states of "
            f"{type(model).__name__} differ from the model's own by {error:.3g}; expected a head "
            "of one matrix with at most a bias, a scale and a soft cap; pass another model"
        )


@torch.no_grad()
def check_matrix(split: SplitModel) -> None:
    """Refuse a head that is more than a matrix and a bias, which a loss may read itself.

    Raises:
        UsageError: its product is another one.
    """
    states = torch.linspace(-1, 1, 8 * split.weight.shape[1], device=split.weight.device)
    states = states.to(split.weight.dtype).reshape(8, -1)
    theirs = split.head(states)[:, : split.width]
    ours = nn.functional.linear(states, split.weight, split.bias)
    if not torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max())):
        raise refusal(split.model, split.flag, "has a head that is more than a matrix and a bias")


def is_float32(model: nn.Module) -> bool:
    """Whether a model computes in float32, so that two ways of computing agree closely."""
    return next(model.parameters()).dtype == torch.float32
