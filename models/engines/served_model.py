"""A model behind one URL: scored prompts, and whether it is still the model that was planned."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from caskd.models.engines.apis import PromptApi, open_api
from caskd.models.engines.http_client import (
    CONCURRENCY,
    HttpServer,
    RequestRefusedError,
    answered,
)
from caskd.models.engines.prompt_rows import NonFiniteError, PromptRows, ordered_rows
from caskd.store.errors import IdentityError, UsageError

_TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "  two spaces, a tab\tand a line\nbreak",
    "def f(x):\n    return x ** 2 + 1",
    "3.14159 + 2,718 = ?",
    "Déjà vu, naïve café; straße",
    "\u4f60\u597d\uff0c\u4e16\u754c",
    "don't can't they'll",
    "UPPER lower MiXeD 0123456789",
)

_ABOUT_THE_BODY = (400, 422)
"""Status codes with which servers refuse a value of a request."""


@dataclass(eq=False)
class ServedModel:
    """One URL and the model that it serves. Open it with `ServedModel.open`.

    Attributes:
        http: the server.
        api: how it is asked.
        num_ids: ids of the vocabulary.
        num_columns: columns of the model, those that pad its embedding included.
        limit: tokens of a prompt and its answer; None where the server names none.
        recognise: called after an interruption, before an answer is used; raises if another model
            answers.
    """

    http: HttpServer
    api: PromptApi
    num_ids: int
    num_columns: int
    limit: int | None
    recognise: Callable[[], None] | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def open(
        cls,
        url: str,
        num_ids: int,
        num_columns: int,
        *,
        served_model: str | None,
        concurrency: int = CONCURRENCY,
    ) -> "ServedModel":
        """Ask a server what it is.

        Raises:
            ServerError: nothing answers.
            UsageError: no model of that name, or several without a name.
        """
        http = HttpServer(url, concurrency=concurrency)
        api, limit = open_api(http, served_model, num_columns)
        return cls(http, api, num_ids, num_columns, limit)

    @property
    def engine(self) -> str:
        """Kind and version, such as `vllm 0.32`."""
        return " ".join(part for part in (self.api.kind, self.api.version) if part)

    def score(self, tokens: Sequence[int], first: int, k: int) -> PromptRows:
        """Rows of the tokens from number `first` >= 1 on.

        Raises:
            NonFiniteError: the model produced NaN.
            TeacherError: the answer is not about these tokens.
            ServerError: the server refused the prompt, or does not answer.
        """
        cells = self.api.cells(tokens, first, k)
        return ordered_rows(cells, tokens[first:], k, self.num_ids, self.num_columns)

    def checked_score(self, tokens: Sequence[int], first: int, k: int) -> PromptRows:
        """As `score`; after an interruption, the model is recognised before its answer is used.

        Raises:
            IdentityError: another model answers now.
        """
        try:
            rows = self.score(tokens, first, k)
        except NonFiniteError:
            self.check_interrupted()
            raise
        self.check_interrupted()
        return rows

    def check_interrupted(self) -> None:
        """Recognise the model again, if its server was interrupted since it was last recognised."""
        with self._lock:
            if self.recognise is not None and self.http.interrupted.is_set():
                self.http.interrupted.clear()
                try:
                    self.recognise()
                except BaseException:
                    self.http.interrupted.set()
                    raise

    def check_cells(self, k: int) -> None:
        """Refuse a k that the server does not give.

        Raises:
            UsageError: names the server's own flag.
            RequestRefusedError: the server refuses the request for another reason.
        """
        try:
            self.score([0] * 4, 1, k)
        except RequestRefusedError as refused:
            if refused.status not in _ABOUT_THE_BODY:
                raise
            raise UsageError(
                f"--top-k {k}: the server at {self.http.url} refused {k} log-probabilities a token "
                f"({refused.text}); expected a server that gives them; start it with "
                f"--max-logprobs {k}, or pass a smaller --top-k"
            ) from refused
        except NonFiniteError:
            return  # an answer about this prompt, with k cells or without

    def check_tokenizer(self, tokenizer: Any) -> None:
        """Compare the server's tokenizer with the teacher's on a few texts, where it answers.

        Raises:
            IdentityError: they give other ids.
        """
        for text in _TEXTS:
            body = {"prompt": text, "add_special_tokens": False}
            if isinstance(getattr(self.api, "model", None), str):
                body["model"] = self.api.model  # type: ignore[attr-defined]
            found = answered(lambda body=body: self.http.ask("/tokenize", body))  # type: ignore[misc]
            ids = found.get("tokens") if isinstance(found, dict) else None
            if not isinstance(ids, list):
                return
            own = tokenizer.encode(text, add_special_tokens=False)
            if ids != own:
                raise IdentityError(
                    f"--url {self.http.url}: its tokenizer gives {ids[:8]} for {text!r}, that of "
                    f"--teacher {own[:8]}; expected the same ids; pass the --teacher that is served"
                )

    def close(self) -> None:
        """End its connections."""
        self.http.close()
