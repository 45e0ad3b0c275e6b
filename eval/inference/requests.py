"""Turn records into requests to a model, and refuse invalid ones before decoding."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from caskd.eval.answers import Predictions, digest
from caskd.eval.config import PredictConfig
from caskd.store.corpus import (
    CHAT_FLAGS,
    TEXT_RULE,
    ChatOptions,
    Columns,
    Record,
    answer_ids,
    check_chat_flags,
    column_value,
    decide_columns,
    given_chat_options,
    prompt_ids,
    read_records,
    record_task,
    reference_text,
    rendered_bos,
    template_values,
    text_columns,
    text_tokens,
)
from caskd.store.errors import IdentityError, UsageError
from caskd.store.io import parse_json


@dataclass(frozen=True)
class EvalExample:
    """One example as a request: prompt tokens, references and options."""

    example_id: str
    source_index: int
    task: str
    references: list[str]
    """Accepted answers, one or more; reports show the first."""
    question_digest: str
    prompt: list[int]
    options: list[str]
    """Options of a multiple-choice question; else empty."""
    option_ids: list[int]
    """First token of each option."""
    asked: str | dict[str, Any] | None = None
    """What a server is asked in place of token ids: a text, or the fields of a conversation."""
    rendered_bos: bool = False
    """The prompt came rendered with BOS, so that no second one was added."""

    @property
    def size(self) -> int:
        """Length of the prompt: tokens, or characters of what a server is asked."""
        return len(self.prompt) if self.asked is None else len(json.dumps(self.asked))

    @property
    def prompt_digest(self) -> str:
        """Digest of the prompt's token ids, or of what a server is asked."""
        if self.asked is None:
            return digest(np.asarray(self.prompt, dtype="<u4").tobytes())
        return digest(json.dumps(self.asked, sort_keys=True).encode())

    @property
    def content(self) -> list[Any]:
        """Fields that must be equal for two models to be compared."""
        return [self.example_id, self.task, self.question_digest, self.references, self.options]


def build_requests(
    tokenizer: Any, records: Sequence[Record], config: PredictConfig
) -> tuple[list[EvalExample], ChatOptions]:
    """Turn records into requests; also returns how their conversations were rendered.

    Raises:
        UsageError: a column is missing or has values of another type, or a flag is invalid.
        IdentityError: a flag contradicts what the model was trained on.
    """
    check_named(config, records)
    text_tokens(tokenizer)  # refuses a tokenizer whose bytes do not reproduce its text
    records = [with_response(record, config) for record in records]
    columns = choose_columns(config, records[0])
    chat = _chat_options(config, tokenizer, columns)
    requests = []
    for index, record in enumerate(records):
        try:
            requests.append(build_request(tokenizer, record, columns, index, config, chat))
        except UsageError as error:
            raise UsageError(f"record {index}: {error}") from None
    return requests, chat


def _chat_options(config: PredictConfig, tokenizer: Any, columns: Columns) -> ChatOptions:
    """How conversations are rendered: by caskd_text.json beside the model, or by the flags."""
    from caskd.models import check_template, conversation_options  # reading needs no torch

    given = given_chat_options(
        config.chat_template, config.template_arguments, config.train_template_tokens
    )
    check_chat_flags(str(columns.kind), given)
    if columns.kind != "messages":
        return ChatOptions()
    chat = conversation_options(config.model, tokenizer, "--model", given, CHAT_FLAGS)
    if chat.template is None:
        check_template(tokenizer, f"--model {config.model}")
    return chat


def text_identity(chat: ChatOptions) -> dict[str, Any]:
    """The rule by which prompts become tokens, for requests and predictions."""
    return {
        "rule": TEXT_RULE,
        "template": chat.template,
        "template_arguments": parse_json(chat.arguments),
        "template_tokens": chat.template_tokens,
    }


def build_request(
    tokenizer: Any,
    record: Record,
    columns: Columns,
    index: int,
    config: PredictConfig,
    chat: ChatOptions,
) -> EvalExample:
    """Turn one record into a request.

    Raises:
        UsageError: a column is missing or has values of another type.
    """
    example = bare_example(record, columns, index, config)
    return replace(
        example,
        prompt=prompt_ids(tokenizer, record, columns, chat),
        option_ids=_first_tokens(
            example.options, lambda option: answer_ids(tokenizer, record, columns, option, chat)
        ),
        rendered_bos=rendered_bos(tokenizer, record, columns),
    )


def bare_example(
    record: Record, columns: Columns, index: int, config: PredictConfig
) -> EvalExample:
    """One record without the tokens of its prompt."""
    return EvalExample(
        example_id=str(index if record.get("id") is None else record["id"]),
        source_index=index,
        task=record_task(record, columns),
        references=_texts(record, config.references_column, "--references-column")
        or [reference_text(record, columns)],
        question_digest=digest(question_text(record, columns).encode()),
        prompt=[],
        options=_texts(record, config.options_column, "--options-column"),
        option_ids=[],
    )


def check_named(config: PredictConfig, records: Sequence[Record]) -> None:
    """Stop if a column named by a flag is missing; default names may be missing."""
    for field in ("references_column", "options_column"):
        name = getattr(config, field)
        if name != getattr(PredictConfig, field) and not any(name in record for record in records):
            raise UsageError(
                f"--{field.replace('_', '-')}: no column {name!r} in the data; expected one of "
                f"{', '.join(map(repr, records[0]))}; pass one of them"
            )


def with_response(record: Record, config: PredictConfig) -> Record:
    """The first of several references serves as the response if there is no response column."""
    several = record.get(config.references_column)
    if config.response_column in record or not isinstance(several, list) or not several:
        return record
    return {**record, config.response_column: several[0]}


def _texts(record: Record, column: str, flag: str) -> list[str]:
    """A list of texts, empty if the record has none."""
    value = record.get(column)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise UsageError(
            f"column {column!r}: holds {type(value).__name__}; expected a list of texts; "
            f"fix the data, or pass {flag} NAME of another column"
        )
    return value


def _first_tokens(options: Sequence[str], encode: Callable[[str], list[int]]) -> list[int]:
    """First token of each option, tokenised as the response; they must differ."""
    firsts: dict[int, str] = {}
    for option in options:
        ids = encode(option)
        if not ids:
            raise UsageError("an option is empty; expected text; fix that record")
        if int(ids[0]) in firsts:
            raise UsageError(
                f"options {firsts[int(ids[0])]!r} and {option!r} start with the same token; "
                "expected different ones; use options such as A and B, or remove the column"
            )
        firsts[int(ids[0])] = option
    return list(firsts)


def question_text(record: Record, columns: Columns) -> str:
    """The question as text before tokenizer and template, so that any models can be compared."""
    if columns.kind == "prompt":
        return str(column_value(record, columns, "prompt"))
    turns = column_value(record, columns, "messages")
    replies = [i for i, turn in enumerate(turns) if turn["role"] == "assistant"]
    asked, given = turns[: replies[-1]], template_values(record, columns)
    return json.dumps({"messages": asked, **given} if given else asked, sort_keys=True)


def question_records(config: PredictConfig) -> Iterator[Record]:
    """The records of --data, with the values of the columns that predict reads."""
    further = {"id", config.references_column, config.options_column}
    wanted = text_columns(_named_columns(config)) | further
    return read_records(config.data, wanted, config.on_bad_text)


def _named_columns(config: PredictConfig) -> Columns:
    return Columns(
        prompt=config.prompt_column,
        response=config.response_column,
        messages=config.messages_column,
        task=config.task_column,
    )


def choose_columns(config: PredictConfig, record: Record) -> Columns:
    """Columns of question and answer, chosen once from the first record."""
    columns = decide_columns(record, _named_columns(config))
    if columns.kind == "text":
        raise UsageError(
            f"--data: has only column {columns.text!r}; expected questions and answers; "
            "pass --prompt-column and --response-column"
        )
    return columns


def check_requests(
    requests: Sequence[EvalExample], max_positions: int | None, max_new_tokens: int
) -> None:
    """Refuse invalid requests before any decoding.

    Raises:
        UsageError: two records share an id, a prompt is empty, or a prompt does not fit the model.
    """
    seen: dict[str, int] = {}
    for request in requests:
        index = request.source_index
        first = seen.setdefault(request.example_id, index)
        if first != index:
            raise UsageError(
                f"records {first} and {index}: both have id {request.example_id!r}; expected "
                "unique ids; set a unique id for each"
            )
        length = len(request.prompt)
        if not length and request.asked in (None, ""):
            raise UsageError(f"record {index}: has an empty prompt; expected a question; remove it")
        if max_positions is not None and length + max_new_tokens > max_positions:
            raise UsageError(
                f"record {index}: {length:,} prompt tokens and --max-new-tokens "
                f"{max_new_tokens:,}; expected at most the {max_positions:,} tokens that the model "
                "supports; lower --max-new-tokens or shorten the prompt"
            )


def read_questions(files: Sequence[str], columns: Columns) -> dict[str, str]:
    """Every question in the data by its digest.

    Raises:
        UsageError: the data cannot be read or has no such column.
    """
    questions: dict[str, str] = {}
    for number, record in enumerate(read_records(files, text_columns(columns), "replace")):
        if number == 0:
            columns = _question_columns(record, columns)
        text = question_text(record, columns)
        questions[digest(text.encode())] = text
    return questions


def _question_columns(record: Record, columns: Columns) -> Columns:
    """Columns of the question, decided without one of the answer."""
    if columns.messages in record or columns.prompt not in record:
        return decide_columns(record, columns)
    return replace(columns, kind="prompt")


def with_questions(predictions: Predictions, questions: dict[str, str]) -> Predictions:
    """The predictions with the questions as column `prompt`.

    Raises:
        IdentityError: a question of the predictions is missing from the data.
    """
    digests = predictions.strings("question_digest")
    missing = sum(value not in questions for value in digests)
    if missing:
        raise IdentityError(
            f"--data: holds {len(digests) - missing:,} of the {len(digests):,} questions of "
            f"{predictions.source}; expected all of them; pass the files that caskd predict read"
        )
    column = pa.array([questions[value] for value in digests], pa.string())
    table = predictions.columns.append_column("prompt", column)
    return Predictions(predictions.source, predictions.metadata, table)
