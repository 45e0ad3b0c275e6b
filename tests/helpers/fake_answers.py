"""A vLLM engine in this process that answers: one step at a time, over a tiny transformers model.

Its rows of logits move between steps, a prompt's first part gives a token that does not count, and
answers that made room for others come back with a new list of their tokens, as in vLLM 0.32.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
from transformers import AutoModelForCausalLM

from caskd.models.engines import EngineOptions, vllm_generation
from caskd.models.engines.vllm_worker import StepRecorder

ROWS = 6
"""Answers of a step; the others wait."""


@dataclass
class Running:
    """An answer under way."""

    prompt: list[int]
    max_new_tokens: int
    stop_ids: Sequence[int]
    extra: Mapping[str, Any]
    ids: list[int] = field(default_factory=list)
    begun: bool = False


class FakeAnswerEngine:
    """As `VllmEngine` for answers."""

    started: ClassVar[list["FakeAnswerEngine"]] = []
    fault: Callable[["FakeAnswerEngine"], None] = staticmethod(lambda _: None)
    """Called with the engine before each step; may raise."""

    def __init__(self, options: EngineOptions) -> None:
        self.options, self.closed, self.num_steps = options, False, 0
        self.model = AutoModelForCausalLM.from_pretrained(options.folder).eval()
        self.recorder, self.running = StepRecorder(), dict[str, Running]()
        self.names: list[str] = []
        self.started.append(self)

    def begin(self, name: str, prompt: Sequence[int], **asked: Any) -> None:
        assert not self.closed
        assert len(prompt) + asked["max_new_tokens"] <= self.options.max_length
        self.running[name] = Running(list(prompt), **asked)
        self.names.append(name)

    @torch.inference_mode()
    def step(self) -> dict[str, tuple[list[int], bool]]:
        type(self).fault(self)
        self.num_steps += 1
        names = list(self.running)[:ROWS][:: 1 if self.num_steps % 2 else -1]
        rows, logits = {}, []
        for row, name in enumerate(names):
            answer = self.running[name]
            if self.num_steps % 5 == 0:
                answer.ids = list(answer.ids)
            rows[row] = self.recorder.answer(answer.extra, answer.ids)
            text = answer.prompt + answer.ids if answer.begun else answer.prompt[:1]
            logits.append(self.model(torch.tensor([text])).logits[0, -1].float())
        self.recorder.rows = rows
        tokens = self.recorder.step(torch.stack(logits)).argmax(dim=-1).tolist()
        found = {}
        for name, token in zip(names, tokens, strict=True):
            answer = self.running[name]
            if not answer.begun:
                answer.begun = True
                continue
            answer.ids.append(token)
            ended = token in answer.stop_ids or len(answer.ids) == answer.max_new_tokens
            found[name] = ([token], ended)
            if ended:
                del self.running[name]
        return found

    def end(self, names: Sequence[str]) -> None:
        for name in names:
            del self.running[name]

    def call(self, method: str, names: Sequence[str]) -> list[Any]:
        assert method == "caskd_steps"
        return [self.recorder.take(names)]

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def fake_answers(monkeypatch: pytest.MonkeyPatch) -> type[FakeAnswerEngine]:
    """Answers with `--backend vllm` come from a `FakeAnswerEngine` of their own."""
    engine = type("Engine", (FakeAnswerEngine,), {"started": []})
    monkeypatch.setattr(vllm_generation, "VllmEngine", engine)
    monkeypatch.setattr(vllm_generation, "vllm_version", lambda: "0.32.0")
    return engine
