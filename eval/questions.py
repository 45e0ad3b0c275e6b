"""From a record to the question that a model is asked, and what is refused before decoding."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from caskd.eval.config import PredictConfig
from caskd.eval.predictions import digest
from caskd.store.corpus import Columns, Record, column_value, decide_columns, record_task
from caskd.store.errors import UsageError
from caskd.store.examples import prompt_ids, reference_text


@dataclass(frozen=True)
class Question:
    """One example as the model is asked it."""

    example_id: str
    source_index: int
    task: str
    reference: str
    question_digest: str
    prompt: list[int]


def ask(tokenizer: Any, record: Record, columns: Columns, index: int) -> Question:
    """Turn a record into the question that the model sees.

    Raises:
        UsageError: a column is missing.
    """
    return Question(
        example_id=str(index if record.get("id") is None else record["id"]),
        source_index=index,
        task=record_task(record, columns),
        reference=reference_text(record, columns),
        question_digest=digest(question_text(record, columns).encode()),
        prompt=prompt_ids(tokenizer, record, columns),
    )


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
