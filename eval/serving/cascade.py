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
from caskd.eval.serving.measured_model import MeasuredModel, Prompt, record_of, stop_texts
from caskd.store.corpus import CHAT_FLAGS, TEXT_RULE, given_chat_options
from caskd.store.errors import IdentityError, UsageError
from caskd.store.io import tell

if TYPE_CHECKING:
    from caskd.models.decoding import Answer, LoadedModel

FloatArray = npt.NDArray[np.float64]
AnswerPrompts = Callable[[list[Prompt]], Sequence[str]]
"""A function from prompts to texts, such as the client of a served model."""

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
        small: MeasuredModel,
        large: MeasuredModel | AnswerPrompts,
    ) -> None:
        """Join the parts that `load` opened."""
        self.rule = settings.rule
        self.threshold = settings.threshold
        self.expected = settings.expected
        self._router = settings.router
        self._small = small
        self._large = large

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

        def open_model(role: str, source: str) -> MeasuredModel:
            from caskd.models import check_same_options, conversation_options
            from caskd.models.decoding import load_for_decoding

            loaded = load_for_decoding(source, "model", dtype=dtype, device=device)
            decoding = settings.decoding[role]
            _check_identity(source, loaded, getattr(settings, role), decoding)
            names = {field: f"{file}: text.{role}.{field}" for field in CHAT_FLAGS}
            chat = conversation_options(source, loaded.tokenizer, "model", measured[role], names)
            where = f"the {role} model of {file} was measured with"
            check_same_options(flags, _FLAGS, chat, loaded.tokenizer, where)
            return MeasuredModel(loaded, chat, decoding, batch_size)

        ours = open_model("small", small or settings.small["name"])
        if callable(large):
            return cls(settings, ours, large)
        if settings.is_old:
            tell(
                f"{file}: is of version 1, which names the decoding of the small model alone; the "
                "large model answers with the same settings; write the file again with caskd eval "
                "if it was measured with others"
            )
        return cls(settings, ours, open_model("large", large or settings.large["name"]))

    def answer(
        self, prompts: Sequence[Prompt], tasks: Sequence[str] | None = None
    ) -> list[CascadeAnswer]:
        """Answer every prompt, in order.

        Args:
            prompts: [E] the prompts.
            tasks: [E] the task of each, by its name in the predictions; needed where the measured
                tasks have different stop texts.

        Raises:
            UsageError: a prompt is empty, its stop texts are not known, or the large model returns
                another number of answers.
        """
        prompts = list(prompts)
        if not prompts:
            return []
        for model in (self._small, self._large):
            if isinstance(model, MeasuredModel):  # before any work
                stop_texts(model.decoding, len(prompts), tasks)
        if self._router is not None and self._router.kind.column == "prompt":
            scores = self._router.score(_Answered(prompts, []))  # before any answer
            kept = [index for index, score in enumerate(scores) if score < self.threshold]
            answers = self._decode(*_chosen(kept, prompts, tasks))
            ours = {index: answer.text for index, answer in zip(kept, answers, strict=True)}
        else:
            answers = self._decode(prompts, tasks)
            scores = self._scores(prompts, answers)
            ours = {
                index: answer.text
                for index, answer in enumerate(answers)
                if scores[index] < self.threshold
            }
        deferred = [index for index in range(len(prompts)) if index not in ours]
        texts = self._ask_large(*_chosen(deferred, prompts, tasks))
        theirs = dict(zip(deferred, texts, strict=True))
        return [
            CascadeAnswer(ours[index], "small", float(score))
            if index in ours
            else CascadeAnswer(theirs[index], "large", float(score))
            for index, score in enumerate(scores)
        ]

    def _decode(self, prompts: Sequence[Prompt], tasks: Sequence[str] | None) -> "list[Answer]":
        return self._small.answers(prompts, tasks)

    def _scores(self, prompts: list[Prompt], answers: "list[Answer]") -> FloatArray:
        stored = _Answered(prompts, answers)
        if self._router is not None:
            return self._router.score(stored)
        rule = fixed_rule(self.rule)
        assert rule is not None, "checked when the file was read"
        return deferral_scores(stored.lists(rule.column), rule)

    def _ask_large(self, prompts: list[Prompt], tasks: Sequence[str] | None) -> list[str]:
        if not prompts:
            return []
        if isinstance(self._large, MeasuredModel):
            return [answer.text for answer in self._large.answers(prompts, tasks)]
        texts = list(self._large(prompts))
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
        return [question_text(*record_of(prompt)) for prompt in self._prompts]


def _chosen(
    indices: Sequence[int], prompts: Sequence[Prompt], tasks: Sequence[str] | None
) -> tuple[list[Prompt], list[str] | None]:
    """Prompts and their tasks at these indices."""
    chosen = None if tasks is None else [tasks[index] for index in indices]
    return [prompts[index] for index in indices], chosen


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


def _check_identity(
    name: str, loaded: "LoadedModel", measured: Mapping[str, Any], decoding: Mapping[str, Any]
) -> None:
    own = {**loaded.identity, "stop_ids": list(loaded.stop_ids)}
    theirs_all = {**measured, "stop_ids": decoding.get("stop_ids")}
    for field in ("weights_digest", "revision", "tokenizer_digest", "stop_ids"):
        ours, theirs = own.get(field), theirs_all.get(field)
        if ours is not None and theirs is not None and ours != theirs:
            raise IdentityError(
                f"{name}: {field} is {ours}; expected {theirs}, with which the cascade was "
                "measured; load that model, or measure this one with caskd predict and caskd eval"
            )
