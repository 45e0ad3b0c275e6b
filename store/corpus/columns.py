"""Columns of a corpus: which of them hold the text, and the digest over their content."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from caskd.store.errors import UsageError

Record = dict[str, Any]
"""One row of a data file: column name -> value."""

Kind = Literal["messages", "prompt", "text"]
KINDS: tuple[Kind, ...] = ("messages", "prompt", "text")
"""Kinds of corpus in the order in which `decide_columns` tries them."""


@dataclass(frozen=True)
class Columns:
    """Names of the columns that hold the text.

    `kind` is the kind of corpus; None until `decide_columns` has seen a record.
    """

    prompt: str = "prompt"
    response: str = "response"
    messages: str = "messages"
    text: str = "text"
    task: str = "task"
    kind: Kind | None = None

    def of(self, kind: Kind) -> dict[str, str]:
        """Columns that a corpus of this kind needs: role -> name in the file."""
        roles = ("prompt", "response") if kind == "prompt" else (kind,)
        return {role: getattr(self, role) for role in roles}


def decide_columns(record: Record, columns: Columns) -> Columns:
    """`columns` with `kind` decided from the columns of the first record.

    A kind with a column name set by the user is required. Otherwise the first complete kind wins:
    messages, then prompt and response, then text.

    Raises:
        UsageError: no kind is complete; the message has the columns found and the flag to pass.
    """
    if columns.kind is not None:
        return columns
    default = Columns()
    named = [kind for kind in KINDS if columns.of(kind) != default.of(kind)]
    for kind in named or KINDS:
        if all(name in record for name in columns.of(kind).values()):
            return replace(columns, kind=kind)
    partial = [k for k in KINDS if any(name in record for name in columns.of(k).values())]
    nearest = (named or partial or ["prompt"])[0]
    missing = {r: name for r, name in columns.of(nearest).items() if name not in record}
    raise UsageError(
        f"--data: no column {' and '.join(map(repr, missing.values()))} among "
        f"{', '.join(map(repr, record))}; expected prompt and response, or messages, or text; "
        f"pass {' '.join(f'--{role}-column NAME' for role in missing)}"
    )


def column_value(record: Record, columns: Columns, role: str) -> Any:
    """Value of the column with this role: a list for messages, text for every other role.

    Raises:
        UsageError: the record lacks the column, or the value has another type.
    """
    name = getattr(columns, role)
    expected: type = list if role == "messages" else str
    if name not in record:
        raise UsageError(
            f"record: no column {name!r}, only {', '.join(map(repr, record))}; expected it in "
            f"every record; pass --{role}-column NAME or fix that record"
        )
    value = record[name]
    if not isinstance(value, expected):
        kind = "a list of messages" if role == "messages" else "text"
        raise UsageError(
            f"column {name!r}: holds {type(value).__name__}; expected {kind} in every record; "
            f"pass --{role}-column NAME or fix that record"
        )
    return value


def record_task(record: Record, columns: Columns) -> str:
    """Task of a record, "" if it has none."""
    task = record.get(columns.task)
    return "" if task is None else str(task)


def canonical_record(record: Record, columns: Columns) -> bytes:
    """Canonical bytes of a record's text and task, independent of file name and file format."""
    columns = decide_columns(record, columns)
    assert columns.kind is not None
    content: dict[str, Any] = {
        role: column_value(record, columns, role) for role in columns.of(columns.kind)
    }
    content["task"] = record_task(record, columns)
    return json.dumps(content, sort_keys=True, ensure_ascii=True, default=str).encode()


def corpus_digest(records: Iterator[Record], columns: Columns) -> tuple[str, int]:
    """sha256 over the canonical bytes of all records in order, and the number of records."""
    digest, count = hashlib.sha256(), 0
    for record in records:
        content = canonical_record(record, columns)
        digest.update(len(content).to_bytes(8, "little") + content)
        count += 1
    return digest.hexdigest(), count
