"""Inside vLLM's workers: they end with the process that owns the engine, and record answers.

`StepProcessor` in `vllm_steps.py` hands each step's logits to `RECORDER`, before vLLM takes their
argmax; `StepWorker` gives what was recorded to the engine's owner.

Legend: B answers of a step, V vocabulary.
"""

import os
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from caskd.models.decoding import Sampling, drawn_tokens, step_figures

KEY = "caskd"
"""Name of an answer's entry in `SamplingParams.extra_args`."""
_FOLLOW_SECONDS = 1.0

Step = tuple[int, float, float, float]
"""Token, log-probability, margin and entropy, as in `Answer`."""
Recorded = tuple[list[Step], list[float] | None]
"""The steps of an answer, and the log-probabilities of its options at the first one."""


class EngineWorker:
    """Base of the classes that vLLM's workers get (`worker_extension_cls`)."""

    def caskd_follow(self, owner: int, engines: Sequence[int]) -> None:
        """End these engine processes, and this worker, once `owner` is no longer their parent.

        vLLM ends its workers when the engine process dies, but not the engine when the process
        that started it is killed: it would keep its memory.
        """
        follower = threading.Thread(target=_follow, args=(owner, list(engines)), daemon=True)
        follower.start()


def _follow(owner: int, engines: Sequence[int]) -> None:
    while engines:
        time.sleep(_FOLLOW_SECONDS)
        try:
            parents = [_parent(process) for process in engines]
        except OSError:
            return  # an engine died, or this system has no /proc: vLLM ends the workers itself
        if any(parent != owner for parent in parents):
            for process in (*engines, os.getpid()):
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)


def _parent(process: int) -> int:
    stat = Path(f"/proc/{process}/stat").read_text(encoding="ascii", errors="replace")
    return int(stat.rpartition(")")[2].split()[1])


def answer_request(
    name: str, *, options: Sequence[int], banned: int | None, sampling: Sampling | None, key: str
) -> dict[str, Any]:
    """What an answer asks of the recorder.

    Args:
        name: of the answer.
        options: first tokens of its question's options.
        banned: an id that no answer has.
        sampling: how its tokens are drawn; None for the likeliest each time.
        key: its name for its draws.
    """
    drawn = None if sampling is None else [sampling.temperature, sampling.seed]
    asked = {"name": name, "options": list(options), "banned": banned, "drawn": drawn, "key": key}
    return {KEY: asked}


@dataclass
class _Answer:
    """An answer that grows."""

    asked: Mapping[str, Any]
    output_ids: Sequence[int]
    """Its tokens so far; vLLM appends to the list."""
    steps: dict[int, Step] = field(default_factory=dict)
    """By place in the answer. A part of a prompt gives a first step, too, until it is whole."""
    options: list[float] | None = None

    @property
    def sampling(self) -> Sampling | None:
        return None if self.asked["drawn"] is None else Sampling(*self.asked["drawn"])


class StepRecorder:
    """Records the figures of each step of the answers of a worker, and draws their tokens."""

    def __init__(self) -> None:
        self.rows: dict[int, _Answer] = {}
        """The answers of the next step, by their rows of its logits."""
        self._kept: dict[str, _Answer] = {}

    def answer(self, extra: Mapping[str, Any] | None, output_ids: Sequence[int]) -> Any:
        """The answer that a row of logits now belongs to; None for a request without one."""
        asked = (extra or {}).get(KEY)
        if asked is None:
            return None
        found = self._kept.setdefault(asked["name"], _Answer(asked, output_ids))
        found.output_ids = output_ids  # one that made room for others comes back with its tokens
        return found

    def step(self, logits: Tensor) -> Tensor:
        """Record a step of logits [B, V] in float32; only a drawn token stays possible."""
        rows = sorted(self.rows)
        if not rows:
            return logits
        answers = [self.rows[row] for row in rows]
        for row, answer in zip(rows, answers, strict=True):
            if answer.asked["banned"] is not None:
                logits[row, answer.asked["banned"]] = -torch.inf
        logprobs = logits[rows].log_softmax(dim=-1)
        figures = step_figures(logprobs).tolist()
        places = [len(answer.output_ids) for answer in answers]
        for row, answer, own, place in zip(rows, answers, logprobs, places, strict=True):
            if answer.asked["options"] and not place:
                answer.options = own[answer.asked["options"]].tolist()
            if answer.sampling is not None:
                drawn = drawn_tokens(
                    logits[row : row + 1], answer.sampling, [answer.asked["key"]], [place]
                )
                logits[row] = torch.full_like(logits[row], -torch.inf)
                logits[row, drawn] = 0.0
        tokens = logits[rows].argmax(dim=-1).tolist()
        for answer, place, token, own in zip(answers, places, tokens, figures, strict=True):
            answer.steps[place] = (token, *own)
        return logits

    def take(self, names: Sequence[str]) -> list[Recorded]:
        """What was recorded of these answers, which have ended."""
        found = [self._kept.pop(name) for name in names]
        return [
            ([answer.steps[n] for n in sorted(answer.steps)], answer.options) for answer in found
        ]


RECORDER = StepRecorder()
"""That of this worker."""


class StepWorker(EngineWorker):
    """Methods that the workers of an engine get that answers; its owner calls them by name."""

    def caskd_steps(self, names: Sequence[str]) -> list[Recorded]:
        """What was recorded of these answers, which have ended."""
        return RECORDER.take(names)
