"""From a record to the question that a model is asked, and what is refused before decoding."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from caskd.eval.answers import Predictions, digest
from caskd.eval.config import PredictConfig
from caskd.store.corpus import (
    Columns,
    Record,
    column_value,
    decide_columns,
    prompt_ids,
    read_records,
    record_task,
    reference_text,
)
from caskd.store.errors import IdentityError, UsageError


@dataclass(frozen=True)
class Question:
    """One example as the model is asked it."""

    example_id: str
    source_index: int
    task: str
    references: list[str]
    """What is expected: one text or more, of which the first is shown to people."""
    question_digest: str
    prompt: list[int]
    options: list[str]
    """Of a multiple-choice question; else none."""
    option_ids: list[int]
    """First token of each option."""

    @property
    def content(self) -> list[Any]:
        """What must be the same where two models are compared."""
        return [self.example_id, self.task, self.question_digest, self.references, self.options]


def ask_all(tokenizer: Any, records: Sequence[Record], config: PredictConfig) -> list[Question]:
    """Turn records into the questions that the model sees.

    Raises:
        UsageError: a column is missing or holds something else than is expected of it.
    """
    _check_named(config, records)
    records = [_with_response(record, config) for record in records]
    columns = decide(config, records[0])
    questions = []
    for index, record in enumerate(records):
        try:
            questions.append(ask(tokenizer, record, columns, index, config))
        except UsageError as error:
            raise UsageError(f"record {index}: {error}") from None
    return questions


def ask(
    tokenizer: Any, record: Record, columns: Columns, index: int, config: PredictConfig
) -> Question:
    """Turn a record into the question that the model sees.

    Raises:
        UsageError: a column is missing or holds something else than is expected of it.
    """
    options = _texts(record, config.options_column, "--options-column")
    return Question(
        example_id=str(index if record.get("id") is None else record["id"]),
        source_index=index,
        task=record_task(record, columns),
        references=_texts(record, config.references_column, "--references-column")
        or [reference_text(record, columns)],
        question_digest=digest(question_text(record, columns).encode()),
        prompt=prompt_ids(tokenizer, record, columns),
        options=options,
        option_ids=_first_tokens(tokenizer, options),
    )


def _check_named(config: PredictConfig, records: Sequence[Record]) -> None:
    """A column that was named, and not by its default, must be there."""
    for field in ("references_column", "options_column"):
        name = getattr(config, field)
        if name != getattr(PredictConfig, field) and not any(name in one for one in records):
            raise UsageError(
                f"no column {name!r} in the data, which has {', '.join(map(repr, records[0]))}; "
                f"check --{field.replace('_', '-')}"
            )


def _with_response(record: Record, config: PredictConfig) -> Record:
    """Data that has only a list of right answers needs no other column with one of them."""
    several = record.get(config.references_column)
    if config.response_column in record or not isinstance(several, list) or not several:
        return record
    return {**record, config.response_column: several[0]}


def _texts(record: Record, column: str, flag: str) -> list[str]:
    """A list of texts, empty where the record has none."""
    value = record.get(column)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise UsageError(
            f"column {column!r} holds {type(value).__name__}, expected a list of "
            f"texts; mend the data, or type {flag} NAME of another column"
        )
    return value


def _first_tokens(tokenizer: Any, options: Sequence[str]) -> list[int]:
    """The tokens that tell the options apart, as responses are tokenised."""
    firsts: dict[int, str] = {}
    for option in options:
        ids = tokenizer(option, add_special_tokens=False, verbose=False)["input_ids"]
        if not ids:
            raise UsageError("an option is empty, expected text; mend the data")
        if int(ids[0]) in firsts:
            raise UsageError(
                f"options {firsts[int(ids[0])]!r} and {option!r} begin with the same token, so "
                "that it tells nothing; give options such as A and B, or name no column of options"
            )
        firsts[int(ids[0])] = option
    return list(firsts)


def question_text(record: Record, columns: Columns) -> str:
    """The question before any tokenizer or template, so that unlike models can be compared."""
    if columns.kind == "prompt":
        return str(column_value(record, columns, "prompt"))
    turns = column_value(record, columns, "messages")
    replies = [i for i, turn in enumerate(turns) if turn["role"] == "assistant"]
    return json.dumps(turns[: replies[-1]], sort_keys=True)


def decide(config: PredictConfig, record: Record) -> Columns:
    """Which columns hold question and answer, decided once from the first record."""
    columns = decide_columns(
        record,
        Columns(
            prompt=config.prompt_column,
            response=config.response_column,
            messages=config.messages_column,
            task=config.task_column,
        ),
    )
    if columns.kind == "text":
        raise UsageError(
            f"the data has only {columns.text!r}, expected questions; "
            "type --prompt-column and --response-column"
        )
    return columns


def check_questions(
    questions: Sequence[Question], max_positions: int | None, max_new_tokens: int
) -> None:
    """Refuse, before any decoding, what cannot be asked.

    Raises:
        UsageError: two records share an id, a prompt is empty, or does not fit the model.
    """
    seen: dict[str, int] = {}
    for question in questions:
        index = question.source_index
        first = seen.setdefault(question.example_id, index)
        if first != index:
            raise UsageError(
                f"records {first} and {index} both have id {question.example_id!r}; "
                "give each its own id"
            )
        length = len(question.prompt)
        if not length:
            raise UsageError(f"record {index} has an empty prompt, expected a question; remove it")
        if max_positions is not None and length + max_new_tokens > max_positions:
            raise UsageError(
                f"record {index} has {length:,} prompt tokens and --max-new-tokens is "
                f"{max_new_tokens:,}, but the model takes {max_positions:,} in all; "
                "lower --max-new-tokens or shorten the prompt"
            )


def read_questions(files: Sequence[str], columns: Columns) -> dict[str, str]:
    """Every question in the data, by its digest.

    Raises:
        UsageError: the data cannot be read or has no such column.
    """
    questions: dict[str, str] = {}
    for number, record in enumerate(read_records(files)):
        if number == 0:
            columns = replace(columns, kind="messages" if columns.messages in record else "prompt")
        text = question_text(record, columns)
        questions[digest(text.encode())] = text
    return questions


def with_questions(predictions: Predictions, questions: dict[str, str]) -> Predictions:
    """The predictions with the questions as the column `prompt`.

    Raises:
        IdentityError: the data does not hold a question that was asked.
    """
    digests = predictions.strings("question_digest")
    missing = sum(one not in questions for one in digests)
    if missing:
        raise IdentityError(
            f"--data holds {len(digests) - missing:,} of the {len(digests):,} questions of "
            f"{predictions.source}, expected all: give the files that caskd predict was given"
        )
    column = pa.array([questions[one] for one in digests], pa.string())
    table = predictions.columns.append_column("prompt", column)
    return Predictions(predictions.source, predictions.metadata, table)
