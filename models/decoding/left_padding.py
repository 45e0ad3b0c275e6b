"""Prompts padded on the left, and the check that they are answered as each alone.

Legend: B prompts, P tokens of the longest, S checked steps, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from caskd.models.batch_groups import BatchGroups
from caskd.models.batching import forget_lengths, length_borders
from caskd.models.devices import memory_errors
from caskd.models.forward_probe import check_causal, probe_tokens
from caskd.models.model_parts import FAILURES, num_embeddings
from caskd.store.errors import UsageError, reason


def left_padded(prompts: Sequence[Sequence[int]], pad: int) -> dict[str, Tensor]:
    """Ids and mask [B, P], padded on the left, so that answers begin at the same column.

    generate() derives positions from the mask.
    """
    longest = max(map(len, prompts))
    ids = [[pad] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def generate(model: Any, **options: Any) -> Tensor:
    """Ids [B, P + N] of the model's own generate().

    Raises:
        UsageError: transformers cannot generate with this class, such as one that no cache fits.
    """
    try:
        ids: Tensor = model.generate(**options)
    except (AttributeError, KeyError) as error:
        raise UsageError(
            f"{type(model).__name__}: generate() of transformers cannot run it ({reason(error)}); "
            "expected a model that generates text; pass another model"
        ) from error
    return ids


def decoding_groups(model: Any, stop_ids: Sequence[int], flag: str, name: str) -> BatchGroups:
    """Which prompts a model may answer in one batch."""
    return BatchGroups(length_borders(model.config), _Probe(model, stop_ids, flag), name)


class _Probe:
    """Checks of a model under generate(): recurrent states, caches and positions are its own."""

    def __init__(self, model: Any, stop_ids: Sequence[int], flag: str) -> None:
        self._model = model
        self._flag = flag
        num_ids = num_embeddings(model, flag)
        special = {*stop_ids, model.generation_config.pad_token_id}
        self._ids = [token for token in range(num_ids) if token not in special]

    def is_same_together(self, lengths: Sequence[int], num_new: int) -> bool:
        """Whether prompts in a batch have the logits of each alone, at every checked step."""
        prompts = [
            [self._ids[n] for n in probe_tokens(max(1, length - num_new), len(self._ids), 3 * i)]
            for i, length in enumerate(lengths)
        ]
        try:
            with memory_errors():
                together = self._logits(prompts, num_new)
                alone = torch.cat([self._logits([prompt], num_new) for prompt in prompts])
        except (MemoryError, *FAILURES):  # an error of one prompt alone shows when it is answered
            return False
        limit = 1e-4 if self._model.dtype == torch.float32 else 5e-2
        spread = (alone - alone.mean(dim=-1, keepdim=True)).abs().mean(dim=(1, 2))
        # NaN passes: answers of such a model are the same in a batch and alone.
        return not bool(((together - alone).abs().mean(dim=(1, 2)) > limit * spread).any())

    @torch.inference_mode()
    def _logits(self, prompts: Sequence[Sequence[int]], num_new: int) -> Tensor:
        """Logits [B, S, V] of the first new tokens; which tokens are chosen is fixed."""
        forget_lengths(self._model)
        device = self._model.device
        recorder = _Fixed(self._ids)
        pad = self._model.generation_config.pad_token_id
        generate(
            self._model,
            **{name: part.to(device) for name, part in left_padded(prompts, pad).items()},
            logits_processor=[recorder],
            max_new_tokens=max(1, num_new),
        )
        return torch.stack(recorder.steps, dim=1)

    def check_causal(self, length: int) -> None:
        """Refuse a model in which later tokens of a prompt of this length change earlier ones."""
        check_causal(self._model, self._flag, length)


class _Fixed:
    """A logits processor that records the logits and chooses a token that they do not decide."""

    def __init__(self, ids: Sequence[int]) -> None:
        self.steps: list[Tensor] = []
        self._ids = ids

    def __call__(self, _: Tensor, logits: Tensor) -> Tensor:
        self.steps.append(logits.float())
        chosen = torch.full_like(logits, float("-inf"))
        chosen[:, self._ids[(5 * len(self.steps) + 2) % len(self._ids)]] = 0.0
        return chosen
