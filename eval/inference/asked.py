"""Requests to a server that has a tokenizer and a chat template of its own."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from caskd.eval.config import PredictConfig
from caskd.eval.inference.requests import (
    EvalExample,
    bare_example,
    check_named,
    choose_columns,
    with_response,
)
from caskd.store.corpus import Columns, Record, column_value, given_chat_options, template_values
from caskd.store.errors import UsageError
from caskd.store.io import parse_json


def build_asked(records: Sequence[Record], config: PredictConfig) -> list[EvalExample]:
    """Turn records into what a server is asked that has a tokenizer and a template of its own.

    Under `--api chat` a `prompt` is one user turn; under completions it is sent as text.

    Raises:
        UsageError: a column is missing or has values of another type, or a flag or kind of data
            needs the tokenizer of --model.
    """
    check_named(config, records)
    records = [with_response(record, config) for record in records]
    columns = choose_columns(config, records[0])
    arguments = given_chat_options(arguments=config.template_arguments).get("arguments")
    given = {"chat_template_kwargs": parse_json(arguments)} if arguments else {}
    if config.api == "completions" and columns.kind == "messages":
        raise UsageError(
            "--api completions: the data has messages, which need a chat template, and no --model "
            "names its tokenizer; expected --api chat, or --model FOLDER; pass one of them"
        )
    requests = []
    for index, record in enumerate(records):
        try:
            example = bare_example(record, columns, index, config)
            if config.api == "chat":
                asked: Any = {**_conversation(record, columns), **given}
            else:
                asked = str(column_value(record, columns, "prompt"))
            requests.append(replace(example, asked=asked))
        except UsageError as error:
            raise UsageError(f"record {index}: {error}") from None
    return requests


def _conversation(record: Record, columns: Columns) -> dict[str, Any]:
    if columns.kind == "prompt":
        prompt = str(column_value(record, columns, "prompt"))
        return {"messages": [{"role": "user", "content": prompt}]}
    turns = column_value(record, columns, "messages")
    last = [i for i, turn in enumerate(turns) if turn["role"] == "assistant"][-1]
    asked = [{k: v for k, v in turn.items() if v is not None} for turn in turns[:last]]
    return {"messages": asked, **template_values(record, columns)}
