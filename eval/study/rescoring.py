"""Score stored answers by another metric, without running a model."""

from collections.abc import Sequence
from dataclasses import replace

import pyarrow as pa

from caskd.eval.answers import Predictions
from caskd.eval.metrics import check_references, find_metric
from caskd.eval.tasks import Task, describe, named_metrics, quality
from caskd.store.errors import UsageError


def rescore(predictions: Predictions, task_metrics: Sequence[str]) -> Predictions:
    """The same answers with new qualities.

    Args:
        predictions: with texts and references.
        task_metrics: NAME=METRIC for one task, METRIC for all others; tasks without a metric keep
            their quality.

    Raises:
        UsageError: a metric is unknown, or no task has a NAME.
    """
    if not task_metrics:
        return predictions
    names = predictions.strings("task")
    named, default = named_metrics(task_metrics, set(names))
    tasks = {name: _stored_task(predictions, name) for name in sorted(set(names))}
    metrics = {name: metric for name in tasks if (metric := named.get(name, default)) is not None}
    for name, metric in metrics.items():
        find_metric(metric)
        tasks[name] = replace(tasks[name], metric=metric, normalize=None)
    values = [
        _quality(predictions, example, tasks[name], text, references, options)
        if name in metrics
        else stored
        for example, name, text, references, options, stored in zip(
            predictions.strings("example_id"),
            names,
            predictions.strings("text"),
            predictions.references(),
            predictions.options(),
            predictions.numbers("quality").tolist(),
            strict=True,
        )
    ]
    table = predictions.columns
    index = table.column_names.index("quality")
    table = table.set_column(index, "quality", pa.array(values, pa.float64()))
    metadata = {**predictions.metadata, "quality": describe(tasks)}
    return Predictions(predictions.source, metadata, table)


def _quality(
    predictions: Predictions,
    example: str,
    task: Task,
    text: str,
    references: Sequence[str],
    options: Sequence[str],
) -> float:
    try:
        check_references(task.metric, references, options)
    except UsageError as error:
        raise UsageError(f"{predictions.source}, example {example!r}: {error}") from None
    return quality(task, text, references, options)


def _stored_task(predictions: Predictions, name: str) -> Task:
    """The metric by which a task was scored when its answers were stored."""
    stored = predictions.metadata.get("tasks", {}).get(name)
    if stored is None:
        return Task(str(predictions.metadata["quality"]))
    return Task(stored["metric"], normalize=stored["normalize"])
