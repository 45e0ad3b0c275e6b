"""Records of a corpus as questions: their response, if they have one, is left out."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from caskd.store.corpus import (
    FINISHED,
    Columns,
    Record,
    column_value,
    decide_columns,
    template_values,
)
from caskd.store.errors import UsageError

TEXT_DIFFERS = "text_differs"
"""Column of a record whose answer is another text than was generated."""
_ANY = "."
"""Stands in place of a response: the prompt's tokens do not depend on it."""


def question_columns(record: Record, columns: Columns) -> Columns:
    """The columns of the first record, which needs no response.

    Raises:
        UsageError: it has neither a prompt nor messages.
    """
    if columns.prompt in record and columns.messages not in record:
        return replace(columns, kind="prompt")
    decided = decide_columns(record, columns)
    if decided.kind == "text":
        raise UsageError(
            f"--data: has only column {columns.text!r}; expected prompts or messages to answer; "
            "pass --prompt-column NAME or --messages-column NAME"
        )
    return decided


def asked_turns(record: Record, columns: Columns) -> list[Mapping[str, Any]]:
    """The turns of a conversation up to the reply that is wanted: its last one, or one more."""
    turns = list(column_value(record, columns, "messages"))
    return turns[:-1] if turns and turns[-1].get("role") == "assistant" else turns


def answered(
    record: Record, columns: Columns, text: str = _ANY, finished: bool | None = None
) -> Record:
    """The record with this text as its response (or last reply)."""
    given = {name: value for name, value in record.items() if value is not None}
    if columns.kind == "prompt":
        given[columns.response] = text
    else:
        reply = {"role": "assistant", "content": text}
        given.pop("conversations", None)
        given[columns.messages] = [*asked_turns(record, columns), reply]
    given.pop(FINISHED, None)
    given.pop(TEXT_DIFFERS, None)
    return given if finished is None else {**given, FINISHED: finished}


def conversation(record: Record, columns: Columns) -> dict[str, Any]:
    """What a chat server is asked; a prompt is one user turn."""
    if columns.kind == "prompt":
        prompt = str(column_value(record, columns, "prompt"))
        return {"messages": [{"role": "user", "content": prompt}]}
    turns = asked_turns(record, columns)
    asked = [{k: v for k, v in turn.items() if v is not None} for turn in turns]
    return {"messages": asked, **template_values(record, columns)}


def questions_digest(records: Sequence[Record], columns: Columns) -> str:
    """sha256 over all records without their responses, in order."""
    found = hashlib.sha256()
    for record in records:
        content = json.dumps(answered(record, columns, ""), sort_keys=True, default=str).encode()
        found.update(len(content).to_bytes(8, "little") + content)
    return found.hexdigest()
