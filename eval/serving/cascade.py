"""Serve a cascade: the small model answers, and prompts that its rule defers go to the large one.

Legend: E prompts.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from caskd.eval.answers import Ragged
from caskd.eval.rules import deferral_scores, fixed_rule
from caskd.eval.serving.cascade_file import CascadeFile, read_cascade
from caskd.store.corpus import CHAT_FLAGS, TEXT_RULE, ChatOptions, Columns, given_chat_options
from caskd.store.errors import IdentityError, UsageError

if TYPE_CHECKING:
    from caskd.models.decoding import Answer, LoadedModel

FloatArray = npt.NDArray[np.float64]
Prompt = str | Sequence[Mapping[str, str]]
"""A text, or the turns of a chat before the answer."""
AnswerPrompts = Callable[[list[Prompt]], Sequence[str]]
"""A function from prompts to texts, such as the client of a served model."""

MAX_NEW_TOKENS = 128
_FLAGS = {
    "template": "chat_template",
    "arguments": "template_arguments",
    "template_tokens": "train_template_tokens",
}


@dataclass(frozen=True)
class CascadeAnswer:
    """One answer, the model that gave it, and its score."""

    text: str
    answered_by: Literal["small", "large"]
    deferral_score: float
    """The large model answers if the score reaches the cascade's threshold."""


class Cascade:
    """A small model, a rule with its threshold, and a large model.

    Attributes:
        rule: name of the deferral rule.
        threshold: a prompt is deferred if its score >= threshold.
        expected: quality, deferral_rate and cost that `caskd eval` measured, with intervals.
    """

    def __init__(
        self,
        settings: CascadeFile,
        small: "LoadedModel",
        large: AnswerPrompts,
        batch_size: int,
        chat: ChatOptions | None = None,
    ) -> None:
        """Join the parts that `load` opened."""
        self.rule = settings.rule
        self.threshold = settings.threshold
        self.expected = settings.expected
        self._router = settings.router
        self._small = small
        self._large = large
        self._batch_size = batch_size
        self._chat = chat
        self._decoding = settings.decoding

    @classmethod
    def load(
        cls,
        file: str,
        *,
        small: str | None = None,
        large: str | AnswerPrompts | None = None,
        device: str = "auto",
        dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
        batch_size: int = 16,
        chat_template: str | None = None,
        template_arguments: str | None = None,
        train_template_tokens: bool = False,
    ) -> "Cascade":
        """Open a cascade.json of `caskd eval --operating-point`.

        Args:
            file: the cascade.json.
            small: the small model, a folder or a hub id; by default the one named in the file.
            large: the large model, likewise, or any function from prompts to texts.
            device: device of both models.
            dtype: number format of their weights.
            batch_size: prompts answered at once.
            chat_template: file with the chat template that both models were measured with, as in
                `caskd predict`; by default each model's own.
            template_arguments: arguments of the template as JSON, likewise.
            train_template_tokens: likewise.

        Raises:
            UsageError: the file or a model cannot be opened.
            IdentityError: a model differs from the measured one, or its conversations would be
                rendered in another way than they were measured or trained.
        """
        settings = read_cascade(file)
        measured = {name: _measured_chat(settings, name, file) for name in ("small", "large")}
        flags = given_chat_options(chat_template, template_arguments, train_template_tokens)

        def open_model(role: str, source: str) -> "tuple[LoadedModel, ChatOptions]":
            from caskd.models import check_same_options, conversation_options
            from caskd.models.decoding import load_for_decoding

            loaded = load_for_decoding(source, "model", dtype=dtype, device=device)
            _check_identity(source, loaded.identity, getattr(settings, role))
            names = {field: f"{file}: text.{role}.{field}" for field in CHAT_FLAGS}
            chat = conversation_options(source, loaded.tokenizer, "model", measured[role], names)
            where = f"the {role} model of {file} was measured with"
            check_same_options(flags, _FLAGS, chat, loaded.tokenizer, where)
            return loaded, chat

        ours, chat = open_model("small", small or settings.small["name"])
        if not callable(large):
            opened, its_chat = open_model("large", large or settings.large["name"])
            decoding = {**settings.decoding, "hidden_layer": None}

            def large(prompts: list[Prompt]) -> list[str]:
                answers = _decode(opened, prompts, decoding, batch_size, its_chat)
                return [answer.text for answer in answers]

        return cls(settings, ours, large, batch_size, chat)

    def answer(self, prompts: Sequence[Prompt]) -> list[CascadeAnswer]:
        """Answer every prompt, in order.

        Raises:
            UsageError: a prompt is empty, or the large model returns another number of answers.
        """
        prompts = list(prompts)
        if not prompts:
            return []
        if self._router is not None and self._router.kind.column == "prompt":
            scores = self._router.score(_Answered(prompts, []))  # before any answer
            kept = [index for index, score in enumerate(scores) if score < self.threshold]
            answers = self._decode([prompts[index] for index in kept])
            ours = {index: answer.text for index, answer in zip(kept, answers, strict=True)}
        else:
            answers = self._decode(prompts)
            scores = self._scores(prompts, answers)
            ours = {
                index: answer.text
                for index, answer in enumerate(answers)
                if scores[index] < self.threshold
            }
        deferred = [index for index in range(len(prompts)) if index not in ours]
        texts = self._ask_large([prompts[index] for index in deferred])
        theirs = dict(zip(deferred, texts, strict=True))
        return [
            CascadeAnswer(ours[index], "small", float(score))
            if index in ours
            else CascadeAnswer(theirs[index], "large", float(score))
            for index, score in enumerate(scores)
        ]

    def _decode(self, prompts: Sequence[Prompt]) -> "list[Answer]":
        return _decode(self._small, prompts, self._decoding, self._batch_size, self._chat)

    def _scores(self, prompts: list[Prompt], answers: "list[Answer]") -> FloatArray:
        stored = _Answered(prompts, answers)
        if self._router is not None:
            return self._router.score(stored)
        rule = fixed_rule(self.rule)
        assert rule is not None, "checked when the file was read"
        return deferral_scores(stored.lists(rule.column), rule)

    def _ask_large(self, prompts: list[Prompt]) -> list[str]:
        texts = list(self._large(prompts)) if prompts else []
        if len(texts) != len(prompts):
            raise UsageError(
                f"large model: returned {len(texts)} answers to {len(prompts)} prompts; expected "
                "one each; fix the function passed as large"
            )
        return texts


class _Answered:
    """Fresh answers with the interface of stored predictions."""

    def __init__(self, prompts: Sequence[Prompt], answers: "Sequence[Answer]") -> None:
        self._prompts = prompts
        self._answers = answers

    def has(self, name: str) -> bool:
        return all(getattr(answer, name, None) is not None for answer in self._answers)

    def lists(self, name: str) -> Ragged:
        if not self.has(name):
            raise UsageError(
                f"rule that reads {name}: serving does not compute {name}; expected a rule of the "
                "small model's own answer; choose an operating point with another rule"
            )
        return Ragged.of([getattr(answer, name) for answer in self._answers])

    def texts(self, name: str) -> list[str]:
        from caskd.eval.inference import question_text

        assert name == "prompt", "the only text that a rule reads"
        return [question_text(*_record(prompt)) for prompt in self._prompts]


def _record(prompt: Prompt) -> tuple[dict[str, Any], Columns]:
    """A prompt as a record of `caskd predict`, with a placeholder answer."""
    if isinstance(prompt, str):
        return {"prompt": prompt, "response": ""}, Columns(kind="prompt")
    reply = {"role": "assistant", "content": "-"}
    return {"messages": [*map(dict, prompt), reply]}, Columns(kind="messages")


def _measured_chat(settings: CascadeFile, name: str, file: str) -> dict[str, Any]:
    """Options with which the prompts of a model were rendered when the cascade was measured.

    Raises:
        IdentityError: they became tokens by another rule.
    """
    text = settings.text.get(name, {})
    if text.get("rule", 1) != TEXT_RULE:
        raise IdentityError(
            f"{file} was measured with text rule {text.get('rule', 1)}, but this caskd makes "
            f"prompts by rule {TEXT_RULE}; run caskd predict and caskd eval --operating-point again"
        )
    arguments = text.get("template_arguments")
    found = {
        "template": text.get("template"),
        "arguments": json.dumps(arguments, sort_keys=True) if arguments else None,
        "template_tokens": True if text.get("template_tokens") else None,
    }
    return {field: value for field, value in found.items() if value is not None}


def _decode(
    loaded: "LoadedModel",
    prompts: Sequence[Prompt],
    decoding: Mapping[str, Any],
    batch_size: int,
    chat: ChatOptions | None = None,
) -> "list[Answer]":
    """Answers decoded as `caskd predict` does, with its stop texts and hidden states."""
    from caskd.eval.inference import batches
    from caskd.models import check_template
    from caskd.models.decoding import check_stop_texts, decode_batch
    from caskd.store.corpus import prompt_ids

    check_stop_texts(loaded.tokenizer, decoding.get("stop", ()))
    own_template = chat is None or chat.template is None
    if own_template and not all(isinstance(prompt, str) for prompt in prompts):
        check_template(loaded.tokenizer, f"model {loaded.identity['name']}")
    ids = [prompt_ids(loaded.tokenizer, *_record(prompt), chat) for prompt in prompts]
    empty = next((index for index, tokens in enumerate(ids) if not tokens), None)
    if empty is not None:
        raise UsageError(f"prompt {empty}: is empty; expected a question; remove it")
    answers: dict[int, Answer] = {}
    for batch in batches([len(tokens) for tokens in ids], batch_size):
        found = decode_batch(
            loaded,
            [ids[index] for index in batch],
            int(decoding.get("max_new_tokens", MAX_NEW_TOKENS)),
            stop=[decoding.get("stop", ())] * len(batch),
            hidden_layer=decoding.get("hidden_layer"),
        )
        answers.update(zip(batch, found, strict=True))
    return [answers[index] for index in range(len(ids))]


def _check_identity(name: str, got: Mapping[str, Any], measured: Mapping[str, Any]) -> None:
    for field in ("weights_digest", "revision", "tokenizer_digest"):
        ours, theirs = got.get(field), measured.get(field)
        if ours is not None and theirs is not None and ours != theirs:
            raise IdentityError(
                f"{name}: {field} is {ours}; expected {theirs}, with which the cascade was "
                "measured; load that model, or measure this one with caskd predict and caskd eval"
            )
