"""The JSON of OpenAI-compatible servers that generate: a request's body, and an answer checked.

`/v1/completions` and `/v1/chat/completions` differ in where text and log-probabilities stand.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from caskd.models.engines.prompt_rows import CLAMPED
from caskd.store.io import value_text

ApiName = Literal["completions", "chat"]
FILTERED = "content_filter"
FINISH_REASONS = ("stop", "length", FILTERED)
_STOPPED = {"tool_calls": "stop", "function_call": "stop", "eos_token": "stop"}
"""Other names of an answer that ended by itself."""
_REASONING = ("reasoning_content", "reasoning")
"""Fields of a chat message for what a reasoning parser takes out of the answer."""
MOST_STOPS = 4
"""Stop texts that a request may have; more are applied here alone."""

NEUTRAL: Mapping[str, float] = {"top_p": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
"""Settings with which a token is the likeliest, or drawn from the whole distribution. vLLM and
SGLang take those that a request lacks from the model's generation_config.json."""
FURTHER_NEUTRAL: Mapping[str, float] = {
    "top_k": -1,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "min_tokens": 0,
    "ignore_eos": False,
}
"""Settings that vLLM and SGLang have besides, under the same names."""

Prompt = str | Sequence[int] | Mapping[str, Any]
"""A text or token ids for `completions`; for `chat` the fields of a conversation: `messages`, and
`tools`, `documents` or `chat_template_kwargs` where it has them."""


@dataclass(frozen=True)
class Question:
    """What is asked of a served model."""

    prompt: Prompt
    max_new_tokens: int
    stop: Sequence[str] = ()
    temperature: float = 0.0
    seed: int | None = None


@dataclass(frozen=True)
class ServedAnswer:
    """An answer of a served model.

    Attributes:
        text: before the first stop text.
        finish_reason: stop, length (cut at the limit) or content_filter (refused).
        prompt_tokens: as the server counts them.
        output_tokens: as the server counts them.
        token_logprobs: of the tokens up to the one that ended the answer; None without log-probs.
        token_margins: log-probability of each token minus that of the next likeliest.
        seconds: from the question to the answer, retries included.
        withheld: the server gave reasoning apart, which is not in `text`.
    """

    text: str
    finish_reason: str
    prompt_tokens: int
    output_tokens: int
    token_logprobs: list[float] | None = None
    token_margins: list[float] | None = None
    seconds: float = 0.0
    withheld: bool = False


@dataclass(frozen=True)
class RequestForm:
    """How a server wants to be asked, found out by one short question."""

    log_probs: bool = True
    limit_name: str = "max_tokens"
    neutral: tuple[str, ...] = tuple(NEUTRAL)
    """Names of the settings of `NEUTRAL` and `FURTHER_NEUTRAL` that it is sent."""

    @property
    def not_sent(self) -> list[str]:
        """Settings that keep the server's own values."""
        return [name for name in (*NEUTRAL, *FURTHER_NEUTRAL) if name not in self.neutral]

    def without(self, refusal: str) -> "RequestForm | None":
        """Another form after the text of a refusal; None if there is no other."""
        if "max_completion_tokens" in refusal and self.limit_name == "max_tokens":
            return replace(self, limit_name="max_completion_tokens")
        kept = tuple(name for name in self.neutral if name not in refusal)
        if kept != self.neutral:
            return replace(self, neutral=kept)
        if self.log_probs:
            return replace(self, log_probs=False)
        return replace(self, log_probs=True, neutral=()) if self.neutral else None


def request_body(model: str, api: ApiName, question: Question, form: RequestForm) -> dict[str, Any]:
    """The JSON of one request."""
    body: dict[str, Any] = {
        "model": model,
        form.limit_name: question.max_new_tokens,
        "temperature": question.temperature,
        "stream": False,
        **{name: {**NEUTRAL, **FURTHER_NEUTRAL}[name] for name in form.neutral},
    }
    if isinstance(question.prompt, Mapping):
        body |= question.prompt
    else:
        body["prompt"] = question.prompt
    if question.stop:
        body["stop"] = list(question.stop[:MOST_STOPS])
    if question.seed is not None:
        body["seed"] = question.seed
    if form.log_probs:
        body |= {"logprobs": True, "top_logprobs": 2} if api == "chat" else {"logprobs": 2}
    return body


def read_answer(
    found: Mapping[str, Any], api: ApiName, stop: Sequence[str], log_probs: bool
) -> ServedAnswer:
    """Check an answer, and cut it before its first stop text.

    Args:
        found: the server's JSON.
        api: that gave it.
        stop: texts that end an answer.
        log_probs: whether its tokens must have log-probabilities.

    Raises:
        KeyError, TypeError, IndexError, AttributeError: a field is missing.
        ValueError: a value is impossible; the message says which.
    """
    choice = found["choices"][0]
    message = choice["message"] if api == "chat" else choice
    text = message.get("content" if api == "chat" else "text")
    finish = _finish_reason(choice, message)
    if text is None:
        text = ""
    if not isinstance(text, str):
        raise ValueError("its text is no text")
    usage = found["usage"]
    counts = [usage["prompt_tokens"], usage.get("completion_tokens", 0)]
    if not all(type(count) is int and count >= 0 for count in counts):
        raise ValueError(f"its usage counts are {value_text(counts)}")
    tokens, logprobs, margins = _log_probs(choice, api) if log_probs else ([], None, None)
    if log_probs and text and not tokens:
        raise ValueError("its tokens have no log-probabilities, which earlier answers had")
    kept = _cut(text, stop)
    end = _end_of(tokens, text, stop)
    return ServedAnswer(
        kept.rstrip("\ufffd"),  # the beginning of a character
        "stop" if len(kept) < len(text) else finish,
        counts[0],
        counts[1],
        None if logprobs is None else logprobs[:end],
        None if margins is None else margins[:end],
        withheld=any(bool(message.get(name)) for name in _REASONING),
    )


def _finish_reason(choice: Mapping[str, Any], message: Mapping[str, Any]) -> str:
    reason = choice.get("finish_reason")
    if message.get("refusal"):
        return FILTERED
    reason = _STOPPED.get(str(reason), reason)
    if reason not in FINISH_REASONS:
        raise ValueError(
            f"its finish_reason is {value_text(reason)}, none of {', '.join(FINISH_REASONS)}"
        )
    return str(reason)


def has_logprobs(found: Mapping[str, Any]) -> bool:
    """Whether a server's answer has log-probabilities of its tokens."""
    try:
        return bool(found["choices"][0].get("logprobs"))
    except (KeyError, TypeError, IndexError, AttributeError):
        return False


def _log_probs(
    choice: Mapping[str, Any], api: ApiName
) -> tuple[list[str], list[float], list[float] | None]:
    """Texts and log-probabilities of the tokens, and margins where two are named for each."""
    given = choice.get("logprobs") or {}
    if api == "chat":
        cells = given.get("content") or []
        tokens = [str(cell["token"]) for cell in cells]
        own = [_number(cell["logprob"]) for cell in cells]
        tops = [
            [_number(top["logprob"]) for top in cell.get("top_logprobs") or []] for cell in cells
        ]
    else:
        tokens = [str(token) for token in given.get("tokens") or []]
        own = [_number(value) for value in given.get("token_logprobs") or []]
        tops = [[*map(_number, (top or {}).values())] for top in given.get("top_logprobs") or []]
    if len(own) != len(tokens):
        raise ValueError(f"it has {len(tokens)} tokens and {len(own)} log-probabilities")
    if len(tops) != len(own) or any(len(top) < 2 for top in tops):
        return tokens, own, None
    return tokens, own, [_margin(value, top) for value, top in zip(own, tops, strict=True)]


def _margin(own: float, top: Sequence[float]) -> float:
    """The token's log-probability minus that of the second likeliest; 0 where another leads."""
    second = sorted(top, reverse=True)[1]
    return math.inf if second == -math.inf else max(own - second, 0.0)


def _number(value: Any) -> float:
    number = float(value)
    if math.isnan(number) or number > 1e-4:
        raise ValueError(f"a log-probability is {number:g}")
    return -math.inf if number <= CLAMPED else min(number, 0.0)


def _end_of(tokens: Sequence[str], text: str, stop: Sequence[str]) -> int:
    """Number of tokens up to the one that completes a stop text; special ones are not in `text`."""
    place = 0
    for number, token in enumerate(tokens, 1):
        place += len(token) if text.startswith(token, place) else 0
        if any(wanted in text[:place] for wanted in stop):
            return number
    return len(tokens)


def _cut(text: str, stop: Sequence[str]) -> str:
    starts = [text.find(wanted) for wanted in stop]
    return text[: min((start for start in starts if start >= 0), default=len(text))]
