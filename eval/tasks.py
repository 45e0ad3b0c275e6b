"""How the answers of each task end and are scored: one table, one line per task."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from caskd.eval.metrics import NORMALIZE, find_metric
from caskd.store.errors import UsageError


@dataclass(frozen=True)
class Task:
    """How answers of one task end and how good they are."""

    metric: str = "exact_match"
    """Of `task_metrics`: exact_match, accuracy, token_f1, numeric_match, chrf, bleu, bleu-zh ..."""
    stop: tuple[str, ...] = ()
    """An answer ends before the first of these texts."""
    normalize: str | None = None
    """What is evened out before comparing: none, spaces, label or squad; None: as the metric."""

    @property
    def measure(self) -> str:
        """Metric and, where it is not the metric's own, normalisation, in one word."""
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
"""By the task's name in the data. Add to it: `TASKS["mine"] = Task("token_f1", stop=("\\n",))`."""

DEFAULT = Task()
"""Of every other task, and of data that names none."""


def choose_tasks(
    names: Iterable[str], task_metrics: Sequence[str] = (), stop: Sequence[str] = ()
) -> dict[str, Task]:
    """The line of each task in the data.

    Args:
        names: tasks in the data, "" where it names none.
        task_metrics: NAME=METRIC for one task, METRIC for all that have no line of their own.
        stop: texts that end the answers of every task, besides its own.

    Raises:
        UsageError: a metric that there is not, or a name that no task in the data has.
    """
    names = sorted(set(names))
    named, default = named_metrics(task_metrics, names)
    chosen = {}
    for name in names:
        line = TASKS.get(name, DEFAULT if default is None else Task(default))
        if name in named:
            line = replace(line, metric=named[name], normalize=None)
        line = replace(line, stop=tuple(dict.fromkeys([*line.stop, *stop])))
        find_metric(line.metric)
        if line.normalize is not None and line.normalize not in NORMALIZE:
            known = ", ".join(NORMALIZE)
            raise UsageError(f"got normalize {line.normalize!r}, expected one of {known}")
        chosen[name] = line
    return chosen


def named_metrics(
    task_metrics: Sequence[str], names: Collection[str]
) -> tuple[dict[str, str], str | None]:
    """Metrics of NAME=METRIC by name, and that of a METRIC alone.

    Raises:
        UsageError: a name that is not among `names`.
    """
    pairs = [value.partition("=") for value in task_metrics]
    named = {name: metric for name, equals, metric in pairs if equals}
    alone = [metric for metric, equals, _ in pairs if not equals]
    unknown = [name for name in named if name not in names]
    if unknown:
        known = ", ".join(repr(name) for name in sorted(names))
        raise UsageError(
            f"--task-metric names task {unknown[0]!r}, but the data has {known}; "
            "check the name, or --task-column"
        )
    return named, alone[-1] if alone else None


def quality(task: Task, text: str, references: Sequence[str], options: Sequence[str] = ()) -> float:
    """Quality of one answer, from 0 to 1."""
    metric = find_metric(task.metric)
    even = NORMALIZE[task.normalize or metric.normalize]
    return metric.score(even(text), [even(one) for one in references], [even(o) for o in options])


def describe(tasks: Mapping[str, Task]) -> str:
    """What quality is the mean of: one metric, or each with the tasks that it scores."""
    measures = sorted({task.measure for task in tasks.values()})
    if len(measures) == 1:
        return measures[0]
    return "; ".join(
        f"{measure} ({', '.join(n or 'no task' for n, t in tasks.items() if t.measure == measure)})"
        for measure in measures
    )
