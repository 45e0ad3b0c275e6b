"""Greedy decoding of a batch, with what deferral rules read of each step.

Legend: B examples of a batch, P prompt tokens after left padding, N new tokens, V vocabulary,
H hidden.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from caskd.store.errors import UsageError

if TYPE_CHECKING:
    from caskd.eval.inference.models import LoadedModel

_SPARE_TOKENS = 4


@dataclass(frozen=True)
class Answer:
    """The new tokens of one example, up to and with the first that ends it."""

    text: str
    """Cut before the text that stopped it; special tokens are left out."""
    token_ids: list[int]
    token_logprobs: list[float]
    token_margins: list[float]
    """Log-probability of each token minus that of the second likeliest."""
    token_entropies: list[float]
    """Of the distribution over all V tokens, in nats."""
    option_logprobs: list[float] | None = None
    """Log-probability of each option's first token as the answer's first token."""
    hidden: list[float] | None = None
    """[H] the hidden state of the prompt's last token."""


@torch.inference_mode()
def decode_batch(
    loaded: "LoadedModel",
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    stop: Sequence[Sequence[str]] = (),
    options: Sequence[Sequence[int]] = (),
    hidden_layer: int | None = None,
) -> list[Answer]:
    """Greedy continuation of each prompt.

    Log-probabilities are log_softmax of the model's own logits in float32, over all V columns.

    Args:
        loaded: the model.
        prompts: [B] token ids.
        max_new_tokens: longest answer, the token that ends it included.
        stop: [B] texts that end each answer; none by default.
        options: [B] first tokens of each example's options; none by default.
        hidden_layer: whose hidden state is kept; as transformers counts `hidden_states`, 0 is the
            embedding, and negative numbers count from the end.

    Raises:
        UsageError: the model has no such layer.
    """
    device, longest = loaded.model.device, max(map(len, prompts))
    pad = loaded.model.generation_config.pad_token_id
    watch = _StopTexts(loaded.tokenizer, stop, longest)
    recorder = _Recorder(options)
    with _hidden_states(loaded.model, hidden_layer) as states:
        output = loaded.model.generate(
            **{name: part.to(device) for name, part in _left_padded(prompts, pad).items()},
            logits_processor=[recorder],
            stopping_criteria=[watch] if any(stop) else [],
            max_new_tokens=max_new_tokens,
        )
    new_ids = output[:, longest:].tolist()  # [B, N]
    steps = torch.stack(recorder.steps, dim=-1).tolist()  # [B, 3, N]
    answers = []
    for place, (row, numbers) in enumerate(zip(new_ids, steps, strict=True)):
        end = _end(row, loaded.stop_ids, watch.ends.get(place))
        text = loaded.tokenizer.decode(row[:end], skip_special_tokens=True)
        logprobs, margins, entropies = (values[:end] for values in numbers)
        answers.append(
            Answer(
                _cut(text, stop[place] if stop else ()),
                row[:end],
                logprobs,
                margins,
                entropies,
                option_logprobs=recorder.option_logprobs.get(place),
                hidden=states[0][place].tolist() if states else None,
            )
        )
    return answers


def _left_padded(prompts: Sequence[Sequence[int]], pad: int) -> dict[str, Tensor]:
    """Ids and mask [B, P]: padded on the left, every prompt ends where its answer begins.

    generate() counts positions from the mask.
    """
    longest = max(map(len, prompts))
    ids = [[pad] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


class _Recorder:
    """Notes, as generate() asks it to change the logits, what they say; changes nothing."""

    def __init__(self, options: Sequence[Sequence[int]]) -> None:
        self.steps: list[Tensor] = []
        """Of each step log-probability, margin and entropy [B, 3]."""
        self.option_logprobs: dict[int, list[float]] = {}
        self._options = options

    def __call__(self, _: Tensor, logits: Tensor) -> Tensor:
        # generate() hands float32 logits [B, V] and takes their argmax next.
        logprobs = logits.log_softmax(dim=-1)
        first, second = logprobs.topk(2, dim=-1).values.unbind(dim=-1)
        entropy = torch.special.entr(logprobs.exp()).sum(dim=-1)
        if not self.steps:
            for place, ids in enumerate(self._options):
                if ids:
                    self.option_logprobs[place] = logprobs[place, list(ids)].tolist()
        self.steps.append(torch.stack((first, first - second, entropy), dim=-1))
        return logits


class _StopTexts:
    """Ends each answer at the first token with which its text holds one of its stop texts."""

    def __init__(self, tokenizer: Any, stop: Sequence[Sequence[str]], start: int) -> None:
        self.ends: dict[int, int] = {}
        """Place in the batch -> number of new tokens, the one that completed the text included."""
        self._tokenizer = tokenizer
        self._stop = stop
        self._start = start
        # A token stands for a byte or more, so that the text lies within so many of them.
        longest = max((len(text.encode()) for texts in stop for text in texts), default=0)
        self._window = longest + _SPARE_TOKENS

    def __call__(self, input_ids: Tensor, _scores: Any, **_: Any) -> Tensor:
        """[B] whether the answer is at its end."""
        new = input_ids[:, self._start :]
        for place, texts in enumerate(self._stop):
            if place not in self.ends and texts:
                tail = new[place, -self._window :].tolist()
                text = self._tokenizer.decode(tail, skip_special_tokens=True)
                if any(one in text for one in texts):
                    self.ends[place] = new.shape[1]
        done = [place in self.ends for place in range(new.shape[0])]
        return torch.tensor(done, device=input_ids.device)


def _end(ids: Sequence[int], stop_ids: Sequence[int], text_end: int | None) -> int:
    found = (place for place, token in enumerate(ids, 1) if token in stop_ids)
    end = next(found, len(ids))
    return end if text_end is None else min(end, text_end)


def _cut(text: str, stop: Sequence[str]) -> str:
    places = [text.find(one) for one in stop]
    return text[: min((place for place in places if place >= 0), default=len(text))]


def hidden_index(model: Any, layer: int) -> int:
    """Which of `hidden_states` a layer is, counted from the start.

    Raises:
        UsageError: the model has no such layer.
    """
    count = int(model.config.get_text_config().num_hidden_layers)
    if not -count - 1 <= layer <= count:
        raise UsageError(
            f"got --hidden {layer}, but the model has {count} layers; expected {-count - 1} to "
            f"{count}, where 0 is the embedding and -1 the last layer"
        )
    return layer % (count + 1)


@contextmanager
def _hidden_states(model: Any, layer: int | None) -> Iterator[list[Tensor]]:
    """Keeps [B, H] of the last position in float32 from the first forward, which is the prompt's.

    generate() can return hidden states too, but then holds those of all layers and positions.
    """
    states: list[Tensor] = []
    if layer is None:
        yield states
        return
    place = hidden_index(model, layer)
    body = getattr(model, model.base_model_prefix)
    layers = _layers(body, int(model.config.get_text_config().num_hidden_layers))

    def keep(hidden: Tensor) -> None:
        if not states:
            states.append(hidden[:, -1].float())

    if place < len(layers):  # what goes into layer i is hidden_states[i]
        handle = layers[place].register_forward_pre_hook(
            lambda _, args, kwargs: keep(args[0] if args else kwargs["hidden_states"]),
            with_kwargs=True,
        )
    else:  # the last one is normalised by the body
        handle = body.register_forward_hook(lambda _, __, result: keep(result.last_hidden_state))
    try:
        yield states
    finally:
        handle.remove()


def _layers(body: torch.nn.Module, count: int) -> torch.nn.ModuleList:
    for module in body.modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == count:
            return module
    raise UsageError(f"{type(body).__name__} has no list of {count} layers; leave out --hidden")
