"""Checks of a model's forward pass: examples in a batch as alone, and no look at later tokens.

Legend: B examples of a batch, L padded length, N tokens of all examples, H hidden.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from caskd.models.batch_groups import BatchGroups
from caskd.models.batching import Arrange, Tokens, pad
from caskd.models.devices import memory_errors
from caskd.models.model_parts import (
    FAILURES,
    inputs_of,
    num_embeddings,
    output_head,
    output_logits,
    run_model,
)
from caskd.models.split_model import SplitModel, is_float32
from caskd.store.errors import UsageError, reason

_CAUSAL_LIMITS = (1e-5, 2e-3, 5e-2)
"""Largest mean difference, relative: in float32, in half precision, and there with experts, whose
products depend on how many tokens each expert gets."""
_FIRST_CHECK = 12

States = Callable[[Sequence[Tokens]], Tensor]
"""From examples in one batch to the states [N, H] of their tokens, example by example."""


def probe_tokens(length: int, num_ids: int, start: int = 0) -> Tokens:
    """Token ids [length] that spread over the vocabulary."""
    return ((np.arange(start, start + length) * 7 + 13) % num_ids).astype(np.uint32)


class ForwardProbe:
    """Checks of the hidden states, in the layout in which examples are computed."""

    def __init__(self, split: SplitModel, num_ids: int, states: States) -> None:
        self._split = split
        self._num_ids = num_ids
        self._states = states

    @torch.no_grad()
    def is_same_together(self, lengths: Sequence[int], num_new: int = 0) -> bool:
        """Whether examples of these lengths in a batch have the hidden states of each alone.

        They differ where tokens see the padding behind them, or where a packed example sees the
        one before. The mean decides: a maximum would also find experts that rounding chose.
        """
        starts = np.cumsum([0, *lengths[:-1]])
        examples = [
            probe_tokens(length, self._num_ids, int(start))
            for length, start in zip(lengths, starts, strict=True)
        ]
        model = self._split.model
        training = model.training
        model.eval()
        try:
            with memory_errors():
                together = self._states(examples).float()
                alone = torch.cat([self._states([one]).float() for one in examples])
        except (MemoryError, *FAILURES):  # of the check; an error of one alone shows when it runs
            return False
        finally:
            model.train(training)
        limit = 1e-4 if is_float32(model) else 5e-2
        # NaN passes: the capture counts the rows of a teacher that computes NaN.
        return not bool((together - alone).abs().mean() > limit * alone.abs().mean())

    def check_causal(self, length: int) -> None:
        """Refuse a model in which later tokens of an example of this length change earlier ones.

        Raises:
            UsageError: they do.
        """
        check_causal(self._split, self._split.flag, length, self._num_ids)


@torch.no_grad()
def check_causal(
    model: Any, flag: str, length: int = _FIRST_CHECK, num_ids: int | None = None
) -> None:
    """Refuse a model that sees later tokens: in training, it would read its labels.

    Args:
        model: a causal LM, or its two halves.
        flag: the option that named it, for errors.
        length: tokens of the check.
        num_ids: ids that the model can read; by default all.

    Raises:
        UsageError: later tokens change the hidden states of earlier ones.
    """
    split = model if isinstance(model, SplitModel) else None
    whole = split.model if split else model
    config = whole.config
    device = split.device if split else model.device
    if num_ids is None:
        num_ids = split.num_ids if split else num_embeddings(model, flag)
    most = getattr(config.get_text_config(), "max_position_embeddings", None) or -1
    length = min(length, most) if most > 0 else length
    # One example and the same with other tokens at its end, in passes of one shape.
    cut = max(1, length * 2 // 3)
    first = probe_tokens(length, num_ids).astype(np.int64)
    second = first.copy()
    second[cut:] = (second[cut:] + max(1, num_ids // 3)) % num_ids
    training = whole.training
    whole.eval()
    try:
        with memory_errors():
            before, after = (_states(model, ids, device)[:cut] for ids in (first, second))
    except MemoryError as error:
        raise UsageError(
            f"{flag}: out of memory in a check on {length:,} tokens ({error}); expected room for "
            "the longest example: shorten the examples, or use a device with more memory"
        ) from error
    except FAILURES as error:
        raise UsageError(
            f"{flag}: {type(whole).__name__} does not compute {length:,} tokens ({reason(error)}); "
            "expected a causal language model; pass another model"
        ) from error
    finally:
        whole.train(training)
    plain, half, experts = _CAUSAL_LIMITS
    limit = plain if is_float32(whole) else experts if _has_experts(config) else half
    if bool((before - after).abs().mean() > limit * before.abs().mean()):
        raise UsageError(
            f"{flag}: {type(whole).__name__} is not causal: at "
            f"{length:,} tokens, later tokens change the hidden states of earlier ones, so that a "
            "token could be read before it is predicted; expected a causal language model: pass "
            "another model, or correct its config (is_decoder, use_bidirectional_attention)"
        )


def _states(model: Any, ids: npt.NDArray[np.int64], device: torch.device) -> Tensor:
    """Hidden states [L, H] of one example; logits of a model without a separate head."""
    tokens = torch.from_numpy(ids)[None].to(device)
    if isinstance(model, SplitModel):
        return model.hidden(tokens)[0].float()
    with inputs_of(output_head(model)) as caught:
        output = run_model(model, tokens)
    states: Tensor = caught[0] if caught else output_logits(output)
    return states[0].float()


def _has_experts(config: Any) -> bool:
    fields = config.get_text_config().to_dict().items()
    return any("expert" in name and type(value) is int and value > 1 for name, value in fields)


def arranged_groups(split: SplitModel, arrange: Arrange, num_ids: int, name: str) -> BatchGroups:
    """The groups of a model whose batches are arranged without a mask, as a capture does."""

    def states(examples: Sequence[Tokens]) -> Tensor:
        positions = [np.arange(len(tokens)) for tokens in examples]
        # One example alone is computed with the positions that the model itself counts.
        batch = pad(examples) if len(examples) == 1 else arrange(examples)
        return split.hidden_rows(batch, positions)

    return BatchGroups(split.borders, ForwardProbe(split, num_ids, states), name)


def masked_groups(
    split: SplitModel, name: str, tell: Callable[[str], None] | None = None
) -> BatchGroups:
    """The groups of a model whose batches are padded on the right, with a mask."""

    def states(examples: Sequence[Tokens]) -> Tensor:
        ids = torch.from_numpy(pad(examples).input_ids).to(split.device)
        lengths = torch.tensor([len(tokens) for tokens in examples], device=split.device)
        mask = (torch.arange(ids.shape[1], device=split.device) < lengths[:, None]).long()
        return split.hidden(ids, attention_mask=mask)[mask.bool()]

    return BatchGroups(split.borders, ForwardProbe(split, split.num_ids, states), name, tell)


def hidden_in_groups(
    split: SplitModel, groups: BatchGroups, input_ids: Tensor, attention_mask: Tensor
) -> Tensor:
    """Hidden states [B, L, H] of examples padded on the right, each as it is alone.

    Positions of padding are zero where the batch was divided.
    """
    if len(input_ids) == 1 or not groups.may_split(input_ids.shape[1]):
        return split.hidden(input_ids, attention_mask)
    lengths = attention_mask.sum(dim=1).tolist()
    found = groups.groups(lengths)
    if len(found) == 1:
        return split.hidden(input_ids, attention_mask)
    parts: list[Tensor | None] = [None] * len(lengths)
    for group in found:
        longest = max(lengths[index] for index in group)
        rows = torch.tensor(group, device=input_ids.device)
        hidden = split.hidden(input_ids[rows, :longest], attention_mask[rows, :longest])
        hidden = nn.functional.pad(hidden, (0, 0, 0, input_ids.shape[1] - longest))
        for index, part in zip(group, hidden, strict=True):
            parts[index] = part
    return torch.stack([part for part in parts if part is not None])
