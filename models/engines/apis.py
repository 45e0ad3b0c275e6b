"""The two shapes in which servers give log-probabilities of a prompt: vLLM's and SGLang's.

vLLM: `/v1/completions` with `prompt_logprobs` (its OpenAI-compatible server). SGLang: `/generate`
with `return_logprob` and `top_logprobs_num`.
"""

import re
from collections.abc import Sequence
from typing import Any, Protocol

from caskd.models.engines.http_client import HttpServer, RequestRefusedError, answered
from caskd.models.engines.prompt_rows import Cells, NonFiniteError
from caskd.store.errors import TeacherError, UsageError

_NOT_A_NUMBER = "Out of range float values"


class PromptApi(Protocol):
    """How one kind of server is asked for the rows of a prompt."""

    kind: str
    version: str | None

    def cells(self, tokens: Sequence[int], first: int, k: int) -> list[Cells]:
        """The cells of tokens `first` and later, each at least token 1.

        Raises:
            NonFiniteError: the model produced NaN.
            RequestRefusedError: the server refused the prompt.
            TeacherError: the answer is not about these tokens.
        """


class VllmApi:
    """vLLM's OpenAI-compatible server."""

    kind = "vllm"

    def __init__(self, http: HttpServer, model: str, version: str | None) -> None:
        self.http, self.model, self.version = http, model, version

    def cells(self, tokens: Sequence[int], first: int, k: int) -> list[Cells]:
        """As in `PromptApi`."""
        body = {
            "model": self.model,
            "prompt": list(tokens),
            "max_tokens": 1,
            "temperature": 0,
            "prompt_logprobs": k,
            "return_token_ids": True,
        }
        try:
            choice = self.http.ask("/v1/completions", body)["choices"][0]
            rows = choice.get("prompt_logprobs")
            _check_ids(choice.get("prompt_token_ids"), tokens)
            if not isinstance(rows, list) or len(rows) != len(tokens):
                raise _wrong_rows(rows, len(tokens))
            return [
                {int(id_): _number(cell["logprob"]) for id_, cell in row.items()}
                for row in rows[first:]
            ]
        except RequestRefusedError as refused:
            if refused.status == 400 and _NOT_A_NUMBER in refused.text:
                raise NonFiniteError from refused
            raise
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise _no_answer(self.http, error) from error


class SglangApi:
    """SGLang's own endpoint.

    Its rows begin with the token at `logprob_start_len`, which has none itself, and it names the
    last id of the model's columns, and any beyond, as 0 (its processing of logprob results).

    Args:
        http: the server.
        version: of SGLang.
        num_columns: of the model's logits.
    """

    kind = "sglang"

    def __init__(self, http: HttpServer, version: str | None, num_columns: int) -> None:
        self.http, self.version, self.num_columns = http, version, num_columns

    def cells(self, tokens: Sequence[int], first: int, k: int) -> list[Cells]:
        """As in `PromptApi`."""
        body = {
            "input_ids": list(tokens),
            "sampling_params": {"max_new_tokens": 1, "temperature": 0},
            "return_logprob": True,
            "logprob_start_len": first - 1,
            "top_logprobs_num": k,
            "return_text_in_logprobs": False,
        }
        try:
            found = self.http.ask("/generate", body)["meta_info"]
            own, tops = found["input_token_logprobs"], found["input_top_logprobs"]
            sent = list(tokens)[first - 1 :]
            if len(own) != len(sent) or len(tops) != len(sent):
                raise _wrong_rows(own, len(sent))
            named = [token if token < self.num_columns - 1 else 0 for token in sent]
            found_ids = [entry[1] for entry in own]
            _check_ids(found_ids if found_ids != named else sent, sent)
            short = [len(top) for top in tops[1:] if len(top) != k]
            if short:
                raise TeacherError(
                    f"server: a row has {short[0]} most likely tokens; expected {k}; check the "
                    "server's version"
                )
            # The first entry is about the token before, which has no row.
            return [_joined(*row) for row in zip(sent[1:], own[1:], tops[1:], strict=True)]
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise _no_answer(self.http, error) from error


def _joined(label: int, own: Sequence[Any], top: Sequence[Sequence[Any]]) -> Cells:
    """The cells of one row, with its own token.

    Raises:
        TeacherError: the token's value differs in both places.
    """
    cells = {int(id_): _number(value) for value, id_, *_ in top}
    value = _number(own[0])
    if cells.setdefault(label, value) != value and value == value:
        raise TeacherError(
            f"server: token {label} has log-probability {value} and {cells[label]} in one answer; "
            "expected one value; check the server's version"
        )
    return cells


def _number(value: Any) -> float:
    """A log-probability; NaN where the server wrote null."""
    return float("nan") if value is None else float(value)


def _check_ids(found: Any, sent: Sequence[int]) -> None:
    if found is not None and list(found) != list(sent):
        raise TeacherError(
            "server: answered about other token ids than were sent; expected the same ids; check "
            "that one model answers behind --url"
        )


def _wrong_rows(rows: Any, expected: int) -> TeacherError:
    got = f"{len(rows)} rows" if isinstance(rows, list) else "no log-probabilities of the prompt"
    return TeacherError(
        f"server: answered with {got}; expected {expected}; serve the model with vLLM or SGLang"
    )


def _no_answer(http: HttpServer, error: Exception) -> TeacherError:
    return TeacherError(
        f"--url {http.url}: an answer lacks a field or has another shape "
        f"({type(error).__name__}); expected that of vLLM or SGLang; check the server's version"
    )


def open_api(
    http: HttpServer, served_model: str | None, num_columns: int
) -> tuple[PromptApi, int | None]:
    """Find out which server answers, and its limit of tokens (None: it names none).

    Raises:
        ServerError: nothing answers.
        UsageError: no model of that name, or several without a name.
    """
    info = answered(lambda: http.ask("/model_info"))
    if not isinstance(info, dict) or "model_path" not in info:
        info = answered(lambda: http.ask("/get_model_info"))
    listed = answered(lambda: http.ask("/v1/models"))
    models = listed.get("data", []) if isinstance(listed, dict) else []
    if isinstance(info, dict) and "model_path" in info:
        version = _version(answered(lambda: http.ask("/server_info")))
        return SglangApi(http, version, num_columns), _limit(models)
    found = _chosen(models, served_model, http.url)
    version = _version(answered(lambda: http.ask("/version")))
    return VllmApi(http, str(found["id"]), version), _limit([found])


def served_name(http: HttpServer, served_model: str | None) -> tuple[str, int | None]:
    """The name of the model to ask, and its limit of tokens (None: the server names none).

    Raises:
        ServerError: nothing answers.
        UsageError: the server lists several models, and none was named.
    """
    listed = answered(lambda: http.ask("/v1/models"))
    models = listed.get("data", []) if isinstance(listed, dict) else []
    known = [m for m in models if isinstance(m, dict) and m.get("id") == served_model]
    if served_model is not None and (known or not models):
        return served_model, _limit(known)
    found = _chosen(models, served_model, http.url)
    return str(found["id"]), _limit([found])


def _chosen(models: Any, served_model: str | None, url: str) -> dict[str, Any]:
    known = [m for m in models if isinstance(m, dict) and "id" in m]
    names = [str(m["id"]) for m in known]
    if served_model is None and len(known) == 1:
        return known[0]
    if served_model in names:
        return known[names.index(served_model)]
    if not names:
        raise UsageError(
            f"--url {url}: /v1/models lists no model; expected a server of vLLM or SGLang; check "
            "--url"
        )
    given = "no --served-model" if served_model is None else f"--served-model {served_model}"
    raise UsageError(
        f"--url {url}: serves {', '.join(names)}, and {given} was given; expected one of them; "
        f"pass --served-model {names[0]}"
    )


def _limit(models: Sequence[Any]) -> int | None:
    limits = [m["max_model_len"] for m in models if isinstance(m, dict) and m.get("max_model_len")]
    return int(limits[0]) if limits else None


def _version(found: Any) -> str | None:
    """Major and minor number of a server's version."""
    text = str(found.get("version", "")) if isinstance(found, dict) else ""
    match = re.match(r"v?(\d+\.\d+)", text)
    return match[1] if match else None
