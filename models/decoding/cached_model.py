"""One model that reads a growing text into a cache, which can go back to a shorter text.

Legend: N new positions, V vocabulary.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from caskd.models.batching import forget_lengths
from caskd.models.decoding.loaded_model import LoadedModel
from caskd.models.devices import memory_errors
from caskd.models.forward_probe import probe_tokens
from caskd.models.model_parts import FAILURES, num_embeddings, output_head
from caskd.store.errors import UsageError

_FIRST_PROBE = 12
_PROBED_DRAFT = 4
_LIMITS = {torch.float64: 1e-8, torch.float32: 1e-4}
"""Largest mean difference of logits after a roll-back, relative to their spread."""
_HALF_LIMIT = 5e-2

Score = Callable[[Tensor | None, Tensor], Tensor]
"""From what the head receives [N, H] and its logits [N, columns] to a number [N] for a rule."""


class CachedModel:
    """A model with the cache of one text.

    Attributes:
        num_forwards: forward passes since the last `restart`.
        num_computed: positions of those passes.
        scores: [num] of `score` at the positions of the last `logits`; None without one.
    """

    scores: Tensor | None = None

    def __init__(
        self, model: Any, vocab_size: int, score: Score | None = None, *, reads_states: bool = False
    ) -> None:
        """Of the model's columns, `vocab_size` are tokens; the others are padding.

        Args:
            model: the causal LM.
            vocab_size: V, without a CALL token.
            score: what a rule reads of each position besides the logits.
            reads_states: whether it reads the head's inputs; it gets None in their place if not.
        """
        self._model = model
        self._vocab_size = vocab_size
        self._score = score
        self._head = output_head(model) if reads_states else None
        self._keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
        self.restart()

    def restart(self) -> None:
        """Forget the text and the counts."""
        forget_lengths(self._model)
        # Without a config, layers with a sliding window keep all positions too, and their mask
        # hides the old ones: only so can they go back beyond the window.
        self._cache = DynamicCache()
        self._length = 0
        self.num_forwards = 0
        self.num_computed = 0

    def logits(self, ids: Sequence[int], num: int) -> Tensor:
        """Logits [num, V] of the token after each of the last `num` ids.

        Only ids behind the cached text are read; the caller has rolled back to where texts differ.
        """
        new = list(ids[self._length :])
        assert len(new) >= num, "positions in the cache have no logits any more"
        options = {"logits_to_keep": num} if self._keeps else {}
        with _last_input(self._head) as states:
            output = self._model(
                input_ids=torch.tensor([new], device=self._model.device),
                past_key_values=self._cache,
                use_cache=True,
                **options,
            )
        self._length += len(new)
        self.num_forwards += 1
        self.num_computed += len(new)
        whole: Tensor = output.logits[0, -num:]
        whole = whole if whole.dtype == torch.float64 else whole.float()
        logits = whole[:, : self._vocab_size]
        if self._score is not None:
            self.scores = self._score(states[-1][0, -num:] if states else None, whole)
        return logits

    def probabilities(self, ids: Sequence[int], num: int) -> Tensor:
        """Probabilities [num, V] of the token after each of the last `num` ids.

        In float32, and in float64 if the model is.
        """
        return self.logits(ids, num).softmax(dim=-1)

    def roll_back(self, length: int) -> None:
        """Shorten the cached text to its first `length` ids, if it is longer."""
        surplus = self._length - length
        if surplus > 0:
            self._cache.crop(-surplus)
            self._length = length


@contextmanager
def _last_input(head: nn.Module | None) -> Iterator[list[Tensor]]:
    """Keep what the head receives, [1, N, H]; nothing without a head."""
    caught: list[Tensor] = []
    if head is None:
        yield caught
        return
    handle = head.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
    try:
        yield caught
    finally:
        handle.remove()


@torch.inference_mode()
def check_roll_back(loaded: LoadedModel, flag: str, longest: int) -> None:
    """Refuse a model whose cache, rolled back from a rejected draft, differs from a fresh one.

    Checked on a short text, and across each length at which the config changes the computation.

    Args:
        loaded: the model.
        flag: the option that named it and its value, for errors.
        longest: tokens of the longest text that will be decoded.

    Raises:
        UsageError: it differs, or the model takes no such cache.
    """
    borders = [border for border in loaded.groups.borders.all if border + 2 < longest]
    for length in (_FIRST_PROBE, *(max(_FIRST_PROBE, border + 2) for border in borders)):
        length = min(length, longest)
        try:
            with memory_errors():
                same = _rolls_back(loaded.model, length, num_embeddings(loaded.model, flag))
        except MemoryError as error:
            raise UsageError(
                f"{flag}: out of memory in a check on {length:,} tokens ({error}); expected room "
                "for the longest example: shorten the examples, or use a device with more memory"
            ) from error
        except FAILURES:
            same = False
        if not same:
            raise UsageError(
                f"{flag}: {type(loaded.model).__name__} does not roll back exactly: after a "
                f"rejected draft at {length:,} tokens its cache differs from one that never read "
                "the draft; expected a cache of keys and values alone, as that of Llama, Qwen or "
                "Gemma; use another model, or a cascade of whole answers (caskd eval)"
            )


def _rolls_back(model: Any, length: int, num_ids: int) -> bool:
    """Whether a text of this length reads the same after a rejected draft."""
    text = probe_tokens(length, num_ids).tolist()
    start = max(1, length - _PROBED_DRAFT)
    draft = probe_tokens(_PROBED_DRAFT, num_ids, start=2 * length + 1).tolist()
    reader = CachedModel(model, num_ids)

    def rest() -> Tensor:
        return torch.cat([reader.logits(text[:end], 1) for end in range(start + 1, length + 1)])

    reader.logits(text[:start], 1)
    fresh = rest()
    reader.restart()
    reader.logits(text[:start], 1)
    reader.logits(text[:start] + draft, len(draft))
    reader.roll_back(start)
    again = rest()
    whole = CachedModel(model, num_ids).logits(text, len(fresh))
    limit = _LIMITS.get(model.dtype, _HALF_LIMIT)
    spread = (fresh - fresh.mean(dim=-1, keepdim=True)).abs().mean()
    # NaN passes: such a model answers the same with and without drafts.
    return not any(bool((other - fresh).abs().mean() > limit * spread) for other in (again, whole))
