"""Greedy decoding of a batch, with the figures of each step that deferral rules read.

Legend: B examples of a batch, P prompt tokens after left padding, N new tokens, V vocabulary,
H hidden.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from caskd.models.batching import forget_lengths
from caskd.models.decoding.left_padding import generate, left_padded
from caskd.models.decoding.loaded_model import LoadedModel
from caskd.models.decoding.stop_texts import StopTexts, answer_text
from caskd.models.model_parts import embedding_of
from caskd.store.errors import UsageError


@dataclass(frozen=True)
class Answer:
    """The new tokens of one example, up to the first that ends it, which is included."""

    text: str
    """Without special tokens, and without the stop text and what follows it."""
    token_ids: list[int]
    token_logprobs: list[float]
    token_margins: list[float]
    """Log-probability of each token minus that of the second most likely."""
    token_entropies: list[float]
    """Entropy of the distribution over all V tokens at each step, in nats."""
    option_logprobs: list[float] | None = None
    """Log-probability of each option's first token as the answer's first token."""
    hidden: list[float] | None = None
    """[H] hidden state of the prompt's last token."""


def decode_batch(
    loaded: LoadedModel,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    stop: Sequence[Sequence[str]] = (),
    options: Sequence[Sequence[int]] = (),
    hidden_layer: int | None = None,
) -> list[Answer]:
    """Greedy continuation of each prompt, the same in a batch as alone.

    Prompts that the model would answer differently in a batch are decoded apart.
    Log-probabilities are log_softmax of the model's own logits in float32, over all V columns.

    Args:
        loaded: the model.
        prompts: [B] token ids.
        max_new_tokens: length of the longest answer, with the token that ends it.
        stop: [B] texts that end each answer; none by default.
        options: [B] first tokens of each example's options; none by default.
        hidden_layer: layer of the hidden state to keep, numbered as in transformers'
            `hidden_states`: 0 is the embedding, and negative numbers count from the end.

    Raises:
        UsageError: the model has no such layer, or later tokens of so long a prompt change the
            hidden states of earlier ones.
    """
    answers: dict[int, Answer] = {}
    for group in loaded.groups.groups([len(prompt) for prompt in prompts], max_new_tokens):
        found = _decode_together(
            loaded,
            [prompts[index] for index in group],
            max_new_tokens,
            stop=[stop[index] for index in group] if stop else (),
            options=[options[index] for index in group] if options else (),
            hidden_layer=hidden_layer,
        )
        answers.update(zip(group, found, strict=True))
    return [answers[index] for index in range(len(prompts))]


@torch.inference_mode()
def _decode_together(
    loaded: LoadedModel,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    stop: Sequence[Sequence[str]],
    options: Sequence[Sequence[int]],
    hidden_layer: int | None,
) -> list[Answer]:
    device, longest = loaded.model.device, max(map(len, prompts))
    pad = loaded.model.generation_config.pad_token_id
    watch = _Watch([StopTexts(loaded.tokenizer, texts) for texts in stop], longest)
    recorder = _Recorder(options)
    forget_lengths(loaded.model)
    with _hidden_states(loaded.model, hidden_layer) as states:
        output = generate(
            loaded.model,
            **{name: part.to(device) for name, part in left_padded(prompts, pad).items()},
            logits_processor=[recorder],
            stopping_criteria=[watch] if any(stop) else [],
            max_new_tokens=max_new_tokens,
        )
    new_ids = output[:, longest:].tolist()  # [B, N]
    steps = torch.stack(recorder.steps, dim=-1).tolist()  # [B, 3, N]
    answers = []
    for index, (row, figures) in enumerate(zip(new_ids, steps, strict=True)):
        end = answer_end(row, loaded.stop_ids, watch.ends.get(index))
        text = answer_text(loaded.tokenizer, row[:end])
        logprobs, margins, entropies = (values[:end] for values in figures)
        answers.append(
            Answer(
                watch.cut(index, text),
                row[:end],
                logprobs,
                margins,
                entropies,
                option_logprobs=recorder.option_logprobs.get(index),
                hidden=states[0][index].tolist() if states else None,
            )
        )
    return answers


def step_figures(logprobs: Tensor) -> Tensor:
    """[B, 3] of log-probabilities [B, V]: the largest, its margin over the second, the entropy."""
    first, second = logprobs.topk(2, dim=-1).values.unbind(dim=-1)
    entropy = torch.special.entr(logprobs.exp()).sum(dim=-1)
    return torch.stack((first, first - second, entropy), dim=-1)


class _Recorder:
    """A logits processor of generate() that records figures of each step and changes nothing."""

    def __init__(self, options: Sequence[Sequence[int]]) -> None:
        self.steps: list[Tensor] = []
        """[B, 3] for each step: log-probability, margin and entropy."""
        self.option_logprobs: dict[int, list[float]] = {}
        self._options = options

    def __call__(self, _: Tensor, logits: Tensor) -> Tensor:
        # generate() passes float32 logits [B, V], and takes their argmax after this call.
        logprobs = logits.log_softmax(dim=-1)
        if not self.steps:
            for index, ids in enumerate(self._options):
                if ids:
                    self.option_logprobs[index] = logprobs[index, list(ids)].tolist()
        self.steps.append(step_figures(logprobs))
        return logits


class _Watch:
    """Ends each answer at the first token with which its text contains one of its stop texts."""

    def __init__(self, stops: Sequence[StopTexts], start: int) -> None:
        self.ends: dict[int, int] = {}
        """Index in the batch -> number of new tokens, with the one that completed the text."""
        self._stops = stops
        self._start = start

    def __call__(self, input_ids: Tensor, _scores: Any, **_: Any) -> Tensor:
        """[B] whether each answer is complete."""
        new = input_ids[:, self._start :]
        for index, stops in enumerate(self._stops):
            if index not in self.ends and stops.complete(new[index].tolist()):
                self.ends[index] = new.shape[1]
        done = [index in self.ends for index in range(new.shape[0])]
        return torch.tensor(done, device=input_ids.device)

    def cut(self, index: int, text: str) -> str:
        """An answer's text before its first stop text."""
        return self._stops[index].cut(text) if self._stops else text


def answer_end(ids: Sequence[int], stop_ids: Sequence[int], text_end: int | None = None) -> int:
    """Number of new tokens of an answer: up to its first stop id, or its stop text."""
    found = (count for count, token in enumerate(ids, 1) if token in stop_ids)
    end = next(found, len(ids))
    return end if text_end is None else min(end, text_end)


def hidden_index(model: Any, layer: int) -> int:
    """Index of a layer in `hidden_states`, counted from the start.

    Raises:
        UsageError: the model has no such layer.
    """
    count = int(model.config.get_text_config().num_hidden_layers)
    if not -count - 1 <= layer <= count:
        raise UsageError(
            f"--hidden {layer}: the model has {count} layers; expected {-count - 1} to {count} "
            "(0 is the embedding, -1 the last layer); pass another layer"
        )
    return layer % (count + 1)


@contextmanager
def _hidden_states(model: Any, layer: int | None) -> Iterator[list[Tensor]]:
    """Keep the last position's hidden states [B, H] of the prompt's forward pass, in float32.

    The prompt's pass is the first one. generate() can return hidden states too, but it keeps those
    of all layers and positions.
    """
    states: list[Tensor] = []
    if layer is None:
        yield states
        return
    index = hidden_index(model, layer)
    layers = _layers(model, int(model.config.get_text_config().num_hidden_layers))

    def keep(hidden: Tensor) -> None:
        if not states:
            states.append(hidden[:, -1].float())

    if index < len(layers):  # the input of layer i is hidden_states[i]
        handle = layers[index].register_forward_pre_hook(
            lambda _, args, kwargs: keep(args[0] if args else kwargs["hidden_states"]),
            with_kwargs=True,
        )
    else:  # the body normalises the output of the last layer
        body = _around(model, layers)
        handle = body.register_forward_hook(lambda _, __, result: keep(result.last_hidden_state))
    try:
        yield states
    finally:
        handle.remove()


def _around(model: torch.nn.Module, layers: torch.nn.Module) -> torch.nn.Module:
    """The body: the innermost module with the embedding and the layers, whatever its name."""
    inside = {embedding_of(model), layers}
    return [module for module in model.modules() if inside <= set(module.modules())][-1]


def _layers(model: torch.nn.Module, count: int) -> torch.nn.ModuleList:
    for module in model.modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == count:
            return module
    raise UsageError(
        f"--hidden: {type(model).__name__} has no list of {count} layers; expected a model with "
        "one; omit --hidden"
    )
