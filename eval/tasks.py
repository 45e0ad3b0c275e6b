"""Stop texts and answer metric of each task: one table, one line per task."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from caskd.eval.metrics import NORMALIZE, find_metric, score_answer
from caskd.store.errors import UsageError


@dataclass(frozen=True)
class Task:
    """Stop texts and answer metric of one task."""

    metric: str = "exact_match"
    """exact_match, accuracy, token_f1, numeric_match, chrf, bleu, bleu-zh ..."""
    stop: tuple[str, ...] = ()
    """An answer ends before the first of these texts."""
    normalize: str | None = None
    """Normalisation before comparing: none, spaces, label or squad; None: the metric's own."""

    @property
    def metric_name(self) -> str:
        """Metric and, if it is not the metric's own, normalisation, in one word."""
        return self.metric if self.normalize is None else f"{self.metric}/{self.normalize}"


_CHOICE = Task("accuracy", stop=("\n",))
_OPEN = Task("exact_match", stop=("\n",), normalize="squad")

TASKS: dict[str, Task] = {
    **dict.fromkeys(("boolq", "cb", "copa", "rte", "wic", "wsc"), _CHOICE),  # SuperGLUE
    **dict.fromkeys(("sst2", "agnews", "mmlu", "openbookqa"), _CHOICE),
    **dict.fromkeys(("nq_open", "triviaqa", "webq", "webquestions"), _OPEN),
    "squad": Task("token_f1", stop=("\n",)),
    "gsm8k": Task("numeric_match"),
    "e2e": Task("bleu", stop=("\n",)),
    "wmt22-en-de": Task("bleu", stop=("\n",)),
    "wmt22-en-ja": Task("bleu-ja-mecab", stop=("\n",)),
    "wmt22-en-zh": Task("bleu-zh", stop=("\n",)),
}
"""By task name in the data. Add to it: `TASKS["mine"] = Task("token_f1", stop=("\\n",))`."""

DEFAULT = Task()
"""For every other task, and for data without a task column."""


def choose_tasks(
    names: Iterable[str], task_metrics: Sequence[str] = (), stop: Sequence[str] = ()
) -> dict[str, Task]:
    """Stop texts and metric of each task in the data.

    Args:
        names: tasks in the data, "" for an example without one.
        task_metrics: NAME=METRIC for one task, METRIC for every task without a line in `TASKS`.
        stop: texts that end the answers of every task, besides its own.

    Raises:
        UsageError: a metric is unknown, or a NAME is no task in the data.
    """
    names = sorted(set(names))
    named, default = named_metrics(task_metrics, names)
    chosen = {}
    for name in names:
        line = TASKS.get(name, DEFAULT if default is None else Task(default))
        if name in named:
            line = replace(line, metric=named[name], normalize=None)
        line = replace(line, stop=tuple(dict.fromkeys([*line.stop, *stop])))
        if "" in line.stop:
            raise UsageError(
                f"task {name!r} has an empty stop text, which would empty every answer; remove it"
            )
        find_metric(line.metric)
        if line.normalize is not None and line.normalize not in NORMALIZE:
            known = ", ".join(NORMALIZE)
            raise UsageError(
                f"normalize {line.normalize!r}: unknown; expected one of {known}; pass one of them"
            )
        chosen[name] = line
    return chosen


def named_metrics(
    task_metrics: Sequence[str], names: Collection[str]
) -> tuple[dict[str, str], str | None]:
    """Split `--task-metric` values into metrics by task name, and the metric of all other tasks.

    Raises:
        UsageError: a NAME is not among `names`.
    """
    pairs = [value.partition("=") for value in task_metrics]
    named = {name: metric for name, equals, metric in pairs if equals}
    alone = [metric for metric, equals, _ in pairs if not equals]
    unknown = [name for name in named if name not in names]
    if unknown:
        known = ", ".join(repr(name) for name in sorted(names))
        raise UsageError(
            f"--task-metric: unknown task {unknown[0]!r}; expected one of {known}; fix the name or "
            "--task-column"
        )
    return named, alone[-1] if alone else None


def quality(task: Task, text: str, references: Sequence[str], options: Sequence[str] = ()) -> float:
    """Quality of one answer, from 0 to 1.

    Raises:
        UsageError: no reference of an `accuracy` question is an option.
    """
    return score_answer(task.metric, task.normalize, text, references, options)


def describe(tasks: Mapping[str, Task]) -> str:
    """The metric of quality in words: one metric, or each with the tasks that it scores."""
    scored: dict[str, list[str]] = {}
    for name, task in tasks.items():
        scored.setdefault(task.metric_name, []).append(name or "no task")
    if len(scored) == 1:
        return next(iter(scored))
    return "; ".join(f"{metric} ({', '.join(names)})" for metric, names in sorted(scored.items()))
