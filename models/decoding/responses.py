"""Answers of a batch as token ids: greedy, or drawn with numbers that are fixed for each answer.

Legend: B examples of a batch, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from caskd.models.batching import forget_lengths
from caskd.models.decoding.greedy import answer_end
from caskd.models.decoding.left_padding import generate, left_padded
from caskd.models.decoding.loaded_model import LoadedModel
from caskd.models.decoding.sampled_tokens import draw, uniforms_at


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn: from softmax(logits / temperature)."""

    temperature: float
    seed: int


def respond(
    loaded: LoadedModel,
    prompts: Sequence[Sequence[int]],
    keys: Sequence[str],
    max_new_tokens: int,
    sampling: Sampling | None = None,
) -> list[list[int]]:
    """The new tokens of each prompt, up to the id that ends the answer, which is included.

    A drawn token depends on the seed, the key and its place in the answer alone, so that neither
    the batch nor other answers change it, up to the rounding of the logits.

    Args:
        loaded: the model.
        prompts: [B] token ids.
        keys: [B] name of each answer, for its draws.
        max_new_tokens: length of the longest answer.
        sampling: None for the likeliest token each time.
    """
    found: dict[int, list[int]] = {}
    for group in loaded.groups.groups([len(prompt) for prompt in prompts], max_new_tokens):
        together = [prompts[index] for index in group]
        longest = max(map(len, together))
        drawn = _Draw([keys[index] for index in group], longest, sampling) if sampling else None
        forget_lengths(loaded.model)
        padded = left_padded(together, loaded.model.generation_config.pad_token_id)
        output = generate(
            loaded.model,
            **{name: part.to(loaded.model.device) for name, part in padded.items()},
            logits_processor=[drawn] if drawn else [],
            stopping_criteria=[],
            max_new_tokens=max_new_tokens,
        )
        for index, row in zip(group, output[:, longest:].tolist(), strict=True):
            found[index] = row[: answer_end(row, loaded.stop_ids)]
    return [found[index] for index in range(len(prompts))]


class _Draw:
    """A logits processor of generate() that leaves the drawn token alone possible."""

    def __init__(self, keys: Sequence[str], start: int, sampling: Sampling) -> None:
        self._keys, self._start, self._sampling = keys, start, sampling

    def __call__(self, input_ids: Tensor, logits: Tensor) -> Tensor:
        """[B, V] logits: 0 for the drawn token of each row, -inf elsewhere."""
        place = input_ids.shape[1] - self._start
        token = drawn_tokens(logits, self._sampling, self._keys, [place] * len(logits))
        return torch.full_like(logits, -torch.inf).scatter(-1, token[:, None], 0.0)


def drawn_tokens(
    logits: Tensor, sampling: Sampling, keys: Sequence[str], places: Sequence[int]
) -> Tensor:
    """Tokens [B] drawn from logits [B, V], each for an answer's key and a place in it."""
    pairs = zip(keys, places, strict=True)
    numbers = [uniforms_at(sampling.seed, key, place)[0] for key, place in pairs]
    probabilities = (logits.double() / sampling.temperature).softmax(dim=-1)
    return draw(probabilities, torch.tensor(numbers, dtype=torch.float64, device=logits.device))
