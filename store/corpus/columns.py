"""Columns of a corpus: which of them hold the text, and the digest over their content."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from caskd.store.errors import UsageError
from caskd.store.io import parse_json

Record = dict[str, Any]
"""One row of a data file: column name -> value."""


class LocatedRecord(Record):
    """A record that knows its file and its line or number there, for errors."""

    __slots__ = ("where",)

    def __init__(self, values: Record, where: str) -> None:
        super().__init__(values)
        self.where = where

    def __reduce__(self) -> tuple[Any, ...]:
        return LocatedRecord, (dict(self), self.where)


def _where(record: Record) -> str:
    """Start of an error about a record: its file and line, where they are known."""
    return f"{record.where}: " if isinstance(record, LocatedRecord) else ""


Kind = Literal["messages", "prompt", "text"]
KINDS: tuple[Kind, ...] = ("messages", "prompt", "text")
"""Kinds of corpus in the order in which `decide_columns` tries them."""
TEMPLATE_COLUMNS = ("tools", "documents")
"""Columns beside the messages that reach the chat template."""
FINISHED = "finished"
"""Column of answers that a model gave: false where its limit cut the answer."""
_SHAREGPT = "conversations"
_ROLES = {"human": "user", "gpt": "assistant"}


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


def text_columns(columns: Columns) -> frozenset[str]:
    """Names of all columns that can reach a text or its task."""
    roles = ("prompt", "response", "messages", "text", "task")
    own = {getattr(columns, role) for role in roles}
    return frozenset({*own, _SHAREGPT, FINISHED, *TEMPLATE_COLUMNS})


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
    if not named and isinstance(record.get(_SHAREGPT), list):
        return replace(columns, kind="messages", messages=_SHAREGPT)
    if not named and {"instruction", "output"} <= record.keys():
        raise UsageError(_alpaca_cure(record))
    partial = [k for k in KINDS if any(name in record for name in columns.of(k).values())]
    nearest = (named or partial or ["prompt"])[0]
    missing = {r: name for r, name in columns.of(nearest).items() if name not in record}
    raise UsageError(
        f"--data: {_where(record)}no column {' and '.join(map(repr, missing.values()))} among "
        f"{', '.join(map(repr, record))}; expected prompt and response, or messages, or text; "
        f"pass {' '.join(f'--{role}-column NAME' for role in missing)}"
    )


def _alpaca_cure(record: Record) -> str:
    """Error for data of the columns instruction, input and output."""
    found = f"the data has the columns {', '.join(map(repr, record))}; expected prompt and response"
    if "input" not in record:
        return f"{found}; pass --prompt-column instruction --response-column output"
    return (
        f"{found}, since nothing says how instruction and input are joined; run jq -c '{{prompt: "
        '([.instruction, .input] | map(select(. != null and . != "")) | join("\\n\\n")), '
        "response: .output}' FILE.jsonl > prompts.jsonl, and pass --data prompts.jsonl"
    )


def column_value(record: Record, columns: Columns, role: str) -> Any:
    """Value of the column with this role: a list for messages, text for every other role.

    Raises:
        UsageError: the record lacks the column, or the value has another type.
    """
    name = getattr(columns, role)
    expected: type[Any] = list if role == "messages" else str
    if name not in record:
        raise UsageError(f"{_where(record)}{_missing_column(record, columns, role)}")
    value = record[name]
    if not isinstance(value, expected):
        kind = "a list of messages" if role == "messages" else "text"
        found = "is null" if value is None else f"holds {type(value).__name__}"
        raise UsageError(
            f"{_where(record)}column {name!r} {found}; expected {kind} in every record; "
            f"pass --{role}-column NAME or fix that record"
        )
    return list(map(_message, value)) if isinstance(value, list) else value


def _missing_column(record: Record, columns: Columns, role: str) -> str:
    """What a record without the column of this role has, and the cure."""
    name = getattr(columns, role)
    other = next((kind for kind in KINDS if record.keys() >= {*columns.of(kind).values()}), None)
    if columns.kind is not None and other not in (None, columns.kind):
        assert other is not None
        ours, theirs = (" and ".join(columns.of(kind).values()) for kind in (columns.kind, other))
        return (
            f"has {theirs}; expected {ours}, as the first record or the store; pass other data, "
            "or capture two stores, and mix them at training with caskd train --store A --store B"
        )
    return (
        f"no column {name!r}, only {', '.join(map(repr, record))}; expected it in "
        f"every record; pass --{role}-column NAME or fix that record"
    )


def _message(item: Any) -> Any:
    """A message with `role` and `content`, of ShareGPT's `from` and `value` too."""
    if not isinstance(item, dict):
        return item
    if "role" not in item and {"from", "value"} <= item.keys():
        rest = {key: value for key, value in item.items() if key not in ("from", "value")}
        item = {"role": item["from"], "content": item["value"], **rest}
    role = item.get("role")
    return {**item, "role": _ROLES[role]} if isinstance(role, str) and role in _ROLES else item


def template_values(record: Record, columns: Columns) -> dict[str, Any]:
    """What a record of messages gives to the template beside them: its tools and documents.

    Raises:
        UsageError: a value is no list, nor the JSON text of one.
    """
    if columns.kind != "messages":
        return {}
    found = {}
    for name in TEMPLATE_COLUMNS:
        value = record.get(name)
        if isinstance(value, str):
            try:
                value = parse_json(value, constants=True) if value.strip() else None
            except ValueError:
                value = record[name]
        if value is None or value == []:
            continue
        if not isinstance(value, list):
            raise UsageError(
                f"column {name!r} holds {type(record[name]).__name__}, expected a list for the "
                "chat template, or the JSON text of one: fix that record, or rename the column"
            )
        found[name] = value
    return found


def ignored_columns(record: Record, columns: Columns) -> list[str]:
    """Columns of a record of messages that nothing reads."""
    if columns.kind != "messages":
        return []
    known = {columns.messages, columns.task, FINISHED, *TEMPLATE_COLUMNS}
    return [name for name, value in record.items() if name not in known and value is not None]


def is_unfinished(record: Record) -> bool:
    """Whether the limit of the model that answered has cut the (last) response."""
    return record.get(FINISHED) is False


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
    content |= template_values(record, columns)
    content["task"] = record_task(record, columns)
    if is_unfinished(record):
        content[FINISHED] = False
    return json.dumps(content, sort_keys=True, ensure_ascii=True, default=str).encode()


def corpus_digest(
    records: Iterator[Record], columns: Columns, ignored: dict[str, None] | None = None
) -> tuple[str, int]:
    """sha256 over the canonical bytes of all records in order, and the number of records.

    Args:
        records: of the corpus.
        columns: names of the text columns.
        ignored: filled with the columns of conversations that nothing reads.
    """
    digest, count = hashlib.sha256(), 0
    for record in records:
        if ignored is not None:
            ignored |= dict.fromkeys(ignored_columns(record, columns))
        content = canonical_record(record, columns)
        digest.update(len(content).to_bytes(8, "little") + content)
        count += 1
    return digest.hexdigest(), count
