"""What a run of `caskd predict` has once its model and its requests are known."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from caskd.eval.answers import Predictions, digest
from caskd.eval.config import PredictConfig
from caskd.eval.inference.requests import EvalExample, text_identity
from caskd.eval.metrics import check_references
from caskd.eval.tasks import Task, choose_tasks, describe, quality
from caskd.models.decoding import Answer, TokenCascadeAnswer
from caskd.store.corpus import ChatOptions
from caskd.store.errors import UsageError

Row = dict[str, Any]
RowsOf = Callable[[Iterable[Sequence[EvalExample]]], Iterator[list[Row]]]
"""The rows of each batch, in the order of the batches."""


@dataclass(frozen=True)
class Ready:
    """Requests, and what answers them."""

    requests: Sequence[EvalExample]
    tasks: dict[str, Task]
    metadata: Mapping[str, Any]
    """Of the predictions file; the parts of one file agree in all of it."""
    rows: RowsOf
    lines: Callable[[Predictions], list[str]]
    """Further lines about the finished file."""


def tasks_of(config: PredictConfig, requests: Sequence[EvalExample]) -> dict[str, Task]:
    """Stop texts and metric of each task.

    Raises:
        UsageError: a flag is wrong, or no answer could match the references of a record.
    """
    stop = [text.replace("\\n", "\n").replace("\\t", "\t") for text in config.stop]
    tasks = choose_tasks((request.task for request in requests), config.task_metric, stop)
    for request in requests:
        try:
            metric = tasks[request.task].metric
            check_references(metric, request.references, request.options)
        except UsageError as error:
            raise UsageError(f"record {request.source_index}: {error}") from None
    return tasks


def metadata_of(
    config: PredictConfig,
    requests: Sequence[EvalExample],
    tasks: Mapping[str, Task],
    chat: ChatOptions,
    *,
    model: Mapping[str, Any],
    decoding: Mapping[str, Any],
    versions: Mapping[str, str],
) -> dict[str, Any]:
    """Metadata of the predictions file; the parts of one file agree in all of it.

    Args:
        config: the flags.
        requests: all of them.
        tasks: of the requests.
        chat: how conversations were rendered.
        model: identity of what answers.
        decoding: settings that it has beside those of every backend.
        versions: of packages.
    """
    first, *rest = tasks.values()
    return {
        "model": model,
        "decoding": {
            "strategy": "greedy",
            "max_new_tokens": config.max_new_tokens,
            "batch_size": config.batch_size,
            "stop": [text for text in first.stop if all(text in task.stop for task in rest)],
            **decoding,
        },
        "tasks": {
            name: {"metric": task.metric, "normalize": task.normalize, "stop": list(task.stop)}
            for name, task in tasks.items()
        },
        "quality": describe(tasks),
        "text": text_identity(chat),
        "data_digest": digest(json.dumps([request.content for request in requests]).encode()),
        "versions": versions,
    }


def answer_row(
    request: EvalExample, answer: Answer | TokenCascadeAnswer, task: Task, seconds: float
) -> Row:
    """A row of an answer of caskd's own decoding, whose fields are named as their columns."""
    columns = {
        **vars(answer),
        "prompt_tokens": len(request.prompt),
        "output_tokens": len(answer.token_ids),
        "seconds": seconds,
    }
    return row_of(request, task, columns)


def row_of(request: EvalExample, task: Task, answer: Mapping[str, Any]) -> Row:
    """A row of the predictions file.

    Args:
        request: what was asked.
        task: its metric.
        answer: `text`, and further columns by their names.
    """
    several = len(request.references) > 1
    return {
        "example_id": request.example_id,
        "source_index": request.source_index,
        "prompt_digest": request.prompt_digest,
        "question_digest": request.question_digest,
        "task": request.task,
        **answer,
        "reference": request.references[0],
        "references": request.references if several else None,
        "options": request.options or None,
        "quality": quality(task, answer["text"], request.references, request.options),
    }
