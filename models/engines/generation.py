"""Answers of a served model: `/v1/completions` and `/v1/chat/completions`, every one checked.

Any OpenAI-compatible server will do. Its usage counts are kept, and the log-probabilities of the
generated tokens where it gives them.
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import PurePosixPath
from typing import Any, Literal

from caskd.models.engines.answer_shapes import (
    FILTERED,
    FURTHER_NEUTRAL,
    ApiName,
    Question,
    RequestForm,
    ServedAnswer,
    has_logprobs,
    read_answer,
    request_body,
)
from caskd.models.engines.apis import served_name
from caskd.models.engines.http_client import (
    CONCURRENCY,
    HttpServer,
    RequestRefusedError,
    ServerError,
    answered,
)
from caskd.models.engines.least_busy import LeastBusy, in_order
from caskd.store.errors import IdentityError
from caskd.store.io import value_text

_HELLO = "Hello"
_PATHS = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}
_REFUSED = (400, 404, 422, 501)
ServerKind = Literal["vllm", "sglang"]
_KIND_PATHS: Mapping[ServerKind, Mapping[str, str]] = {
    "sglang": {"/model_info": "model_path", "/get_model_info": "model_path"},
    "vllm": {"/version": "version"},
}
"""Paths that a kind of server has, and a field of what it answers there."""


class _Server:
    """One URL."""

    def __init__(self, http: HttpServer, model: str, api: ApiName) -> None:
        self.http, self.model, self.api = http, model, api
        self.answers_as: str | None = None

    def find_form(self, form: RequestForm) -> RequestForm:
        """Ask a short question, with log-probabilities and in the usual words if possible.

        Raises:
            RequestRefusedError: no form is accepted.
        """
        while True:
            try:
                found = self.ask(_hello(self.api), form)
            except RequestRefusedError as refused:
                other = form.without(refused.text) if refused.status in _REFUSED else None
                if other is None:
                    raise
                form = other
            else:
                self.answers_as = found.get("model")
                return replace(form, log_probs=form.log_probs and has_logprobs(found))

    def ask(self, question: Question, form: RequestForm) -> dict[str, Any]:
        """The server's answer in its own JSON."""
        body = request_body(self.model, self.api, question, form)
        found = self.http.ask(_PATHS[self.api], body)
        if not isinstance(found, dict):
            raise self.strange("it is no JSON object")
        return found

    def check_model(self, name: Any) -> None:
        """Refuse the answer of another model than answered first.

        Raises:
            IdentityError: names both.
        """
        if name != self.answers_as:
            raise IdentityError(
                f"--url {self.http.url}: answers as model {value_text(name)}; expected "
                f"{value_text(self.answers_as)}, which answered first; serve that model again"
            )

    def strange(self, why: str) -> ServerError:
        """The error of an answer that has not the shape of the API."""
        return ServerError(
            f"--url {self.http.url}: an answer of {_PATHS[self.api]} is unusable: {why}; expected "
            "that of an OpenAI-compatible server; check --api and the server's version"
        )


class ServedGenerator:
    """Servers of one model that answer questions. Open it with `ServedGenerator.open`.

    Attributes:
        model: name of the model there, without a path.
        answers_as: the name in its answers, without a path; None where they have none.
        form: how the servers are asked.
        kind: vllm or sglang; None for another server, or several kinds.
        limit: tokens of a question and its answer; None where no server names it.
    """

    def __init__(
        self,
        servers: Sequence[_Server],
        form: RequestForm,
        limit: int | None,
        kind: ServerKind | None = None,
    ) -> None:
        self.form, self.limit, self.kind = form, limit, kind
        self.model = _without_path(servers[0].model)
        named = servers[0].answers_as
        self.answers_as = None if named is None else _without_path(str(named))
        self._servers = LeastBusy(servers)

    @classmethod
    def open(
        cls,
        urls: Iterable[str],
        api: ApiName,
        *,
        served_model: str | None = None,
        concurrency: int = CONCURRENCY,
    ) -> "ServedGenerator":
        """Ask each server one short question.

        Raises:
            ServerError: one does not answer, or refuses the question.
            UsageError: no model of that name, or several without a name.
            IdentityError: they answer as different models.
        """
        servers: list[_Server] = []
        form, limits, kinds = RequestForm(), [], []
        for url in dict.fromkeys(urls):
            http = HttpServer(url, concurrency=concurrency)
            name, limit = served_name(http, served_model)
            kinds.append(server_kind(http))
            server = _Server(http, name, api)
            if servers:
                server.answers_as = servers[0].answers_as
                server.check_model(server.ask(_hello(api), form).get("model"))
            else:
                further = tuple(FURTHER_NEUTRAL) if kinds[0] else ()
                form = server.find_form(replace(form, neutral=(*form.neutral, *further)))
            servers.append(server)
            limits += [] if limit is None else [limit]
        kind = kinds[0] if len(set(kinds)) == 1 else None
        return cls(servers, form, min(limits, default=None), kind)

    def setting_lines(self) -> list[str]:
        """What the answers may depend on besides the model, if anything."""
        names = self.form.not_sent if self.kind else [*self.form.not_sent, *FURTHER_NEUTRAL]
        if not names:
            return []
        said = f"refused {', '.join(names)}" if self.kind else "is neither vLLM nor SGLang"
        return [
            f"--url {self._servers.servers[0].http.url}: {said}; {', '.join(dict.fromkeys(names))} "
            "keep the server's own values, such as those of generation_config.json: answers are "
            "greedy, or draws of the model's distribution, only if it has none"
        ]

    @property
    def threads(self) -> int:
        """Requests that may be under way together."""
        return sum(server.http.concurrency for server in self._servers.servers)

    def answers(self, questions: Iterable[Question]) -> Iterator[ServedAnswer]:
        """The answers, in the order of the questions; many are asked together.

        Raises:
            ServerError: a server does not answer, or not in the shape of its API.
            IdentityError: another model answers.
        """
        with ThreadPoolExecutor(self.threads, "caskd-server") as pool:
            try:
                yield from in_order(pool, self.answer, questions, self.threads)
            except BaseException:
                self.close()  # else the pool waits for answers that nobody wants
                raise

    def answer(self, question: Question) -> ServedAnswer:
        """The answer to one question.

        Raises:
            ServerError: the server does not answer, or not in the shape of its API.
            IdentityError: another model answers.
        """
        began = time.perf_counter()
        with self._servers.pick() as server:
            try:
                found = server.ask(question, self.form)
            except RequestRefusedError as refused:
                if refused.status == 400 and FILTERED in refused.text:
                    none: list[float] | None = [] if self.form.log_probs else None
                    return ServedAnswer("", FILTERED, 0, 0, none, none, _since(began))
                raise
            server.check_model(found.get("model"))
            try:
                answer = read_answer(found, server.api, question.stop, self.form.log_probs)
            except (KeyError, TypeError, IndexError, AttributeError) as error:
                raise server.strange(f"it lacks a field ({type(error).__name__})") from error
            except ValueError as error:
                raise server.strange(str(error)) from error
            return replace(answer, seconds=_since(began))

    def close(self) -> None:
        """End all connections."""
        for server in self._servers.servers:
            server.http.close()


def server_kind(http: HttpServer) -> ServerKind | None:
    """Which server answers, by its list of models or by the paths that it alone has.

    Raises:
        ServerError: nothing answers.
    """
    listed = answered(lambda: http.ask("/v1/models"))
    models = listed.get("data") if isinstance(listed, dict) else None
    owners = {m.get("owned_by") for m in models or [] if isinstance(m, dict)}
    for kind in _KIND_PATHS:
        if kind in owners:
            return kind
    for kind, paths in _KIND_PATHS.items():
        for path, field in paths.items():
            found = answered(partial(http.ask, path))
            if isinstance(found, dict) and field in found:
                return kind
    return None


def _since(began: float) -> float:
    return time.perf_counter() - began


def _hello(api: ApiName) -> Question:
    chat = {"messages": [{"role": "user", "content": _HELLO}]}
    return Question(chat if api == "chat" else _HELLO, max_new_tokens=1)


def _without_path(name: str) -> str:
    """The name of a model: servers that were started with a folder use its whole path."""
    return PurePosixPath(name).name if name.startswith(("/", "./", "~")) else name
