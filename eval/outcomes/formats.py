"""Rows of outcome tables: the long form, RouterArena's cached results, RouteLLM's responses.

A format is recognised by the names of a file's columns, and only the columns that it needs are
read. Every value of a CSV file is text; an empty one is an absent one.
"""

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from caskd.eval.answers import digest
from caskd.store.corpus import Record, read_records
from caskd.store.errors import UsageError
from caskd.store.io import DATA_ENDINGS, value_text

_PICKLES = (".pkl", ".pickle", ".npy", ".pt", ".pth", ".joblib")
LONGEST_NAME = 4096
_MOST = 1e100
"""Largest quality or amount: sums of squares stay finite."""
_NEEDED = ("example_id", "model", "quality")
_AMOUNTS = ("cost", "latency_ms", "prompt_tokens", "output_tokens")
_LONG = (*_NEEDED, "score", "confidence", *_AMOUNTS, "task")


class Outcome(NamedTuple):
    """One answer of one model; an absent value is None."""

    example: str
    question: str
    """Equal for equal questions, the unit of resampling."""
    model: str
    quality: float
    score: float | None = None
    """Deferral score: higher is deferred first."""
    rule: str = "none"
    """Where the score comes from: `score`, `confidence`, or `none` without one."""
    cost: float | None = None
    latency_ms: float | None = None
    prompt_tokens: float | None = None
    output_tokens: float | None = None
    task: str = ""


@dataclass(frozen=True)
class Format:
    """One shape of outcome tables."""

    name: str
    columns: Collection[str]
    """The columns that are read."""
    parse: Callable[[Record, str], Iterator[Outcome]]
    """The outcomes of a record; the text says where it stands, for errors."""


def read_outcomes(file: str, models: Sequence[str]) -> tuple[Format, Iterator[Outcome]]:
    """Recognise a file and stream its outcomes.

    Args:
        file: path of a JSONL, CSV, Parquet or Arrow file.
        models: names of the models that are asked for; a wide table is recognised by them.

    Raises:
        UsageError: the file is missing, a pickle, of another type, or of no known shape.
    """
    _check_not_pickled(file)
    names = list(next(iter(read_records([file], (), flag="--outcomes"))))
    found = find_format(file, names, models)

    def rows() -> Iterator[Outcome]:
        for number, record in enumerate(read_records([file], found.columns, flag="--outcomes")):
            where = getattr(record, "where", f"{file}, record {number}")
            yield from found.parse(record, where)

    return found, rows()


def find_format(file: str, names: Sequence[str], models: Sequence[str]) -> Format:
    """The format of a file whose columns have these names.

    Raises:
        UsageError: no known shape, or both `score` and `confidence`.
    """
    if set(names) >= set(_NEEDED):
        if {"score", "confidence"} <= set(names):
            raise UsageError(
                f"{file}: has the columns score and confidence; expected one of them; remove one"
            )
        return Format("long", _LONG, _long)
    if {"global_index", "evaluation_result"} <= set(names):
        columns = ("global_index", "llm_selected", "evaluation_result", "token_usage")
        return Format("RouterArena", columns, _router_arena)
    wide = [model for model in models if model in names]
    if "prompt" in names and wide:
        return Format("RouteLLM", ("prompt", *wide), lambda row, at: _route_llm(row, at, wide))
    missing = ", ".join(name for name in _NEEDED if name not in names)
    raise UsageError(
        f"{file}: has no column {missing}; expected {', '.join(_NEEDED)} in each row, cached "
        "results of RouterArena, or RouteLLM's column of prompts and one for each model; convert "
        "a wide table with examples/long_outcomes.py"
    )


def _check_not_pickled(file: str) -> None:
    if Path(file).suffix.lower() in _PICKLES:
        raise UsageError(
            f"--outcomes {file}: is a pickle, which can run code when it is opened; expected one "
            f"of {', '.join(DATA_ENDINGS)}; write it as Parquet where you trust it"
        )


def _long(record: Record, where: str) -> Iterator[Outcome]:
    """A row of the long form."""
    example, model = (_text(record, name, where) for name in ("example_id", "model"))
    score, rule = _number(record.get("score"), "score", where), "score"
    if score is None:
        confidence = _number(record.get("confidence"), "confidence", where)
        score, rule = (None, "none") if confidence is None else (-confidence, "confidence")
    yield Outcome(
        example,
        example,
        model,
        _quality(record.get("quality"), "quality", where),
        score,
        rule,
        **{name: _amount(record.get(name), name, where) for name in _AMOUNTS},
        task=_text(record, "task", where) if record.get("task") else "",
    )


def _router_arena(record: Record, where: str) -> Iterator[Outcome]:
    """A line of RouterArena's cached results; none for an answer that was not scored."""
    result, usage = record.get("evaluation_result"), record.get("token_usage")
    if not isinstance(result, dict) or result.get("score") is None:
        return
    usage = usage if isinstance(usage, dict) else {}
    example, model = (_text(record, name, where) for name in ("global_index", "llm_selected"))
    yield Outcome(
        example,
        example,
        model,
        _quality(result["score"], "evaluation_result.score", where),
        cost=_amount(result.get("inference_cost"), "evaluation_result.inference_cost", where),
        prompt_tokens=_amount(usage.get("input_tokens"), "token_usage.input_tokens", where),
        output_tokens=_amount(usage.get("output_tokens"), "token_usage.output_tokens", where),
        task=example.rpartition("_")[0],
    )


def _route_llm(record: Record, where: str, models: Sequence[str]) -> Iterator[Outcome]:
    """A row of RouteLLM's responses: a prompt, and for each model whether it was right.

    The task is the name of the file, such as `mmlu_anatomy`; rows have no ids but their places.
    """
    file, _, place = where.rpartition(", ")
    task = Path(file).stem
    question = digest(str(record.get("prompt")).encode())
    for model in models:
        value = _quality(record.get(model), model, where)
        yield Outcome(f"{task} {place}", question, model, value, task=task)


def _text(record: Record, name: str, where: str) -> str:
    value = record.get(name)
    if isinstance(value, bool | dict | list) or value is None or value == "":
        raise UsageError(f"{where}: {name} is {value_text(value)}; expected a name; fix that row")
    text = str(value)
    if len(text) > LONGEST_NAME:
        raise UsageError(
            f"{where}: {name} has {len(text):,} characters; expected at most {LONGEST_NAME:,}; "
            "shorten it, to a digest perhaps"
        )
    return text


def _quality(value: Any, name: str, where: str) -> float:
    number = _number(value, name, where)
    if number is None or not abs(number) <= _MOST:
        raise UsageError(
            f"{where}: {name} is {value_text(value)}; expected a finite number, at most "
            f"{_MOST:g}; fix or remove that row"
        )
    return number


def _amount(value: Any, name: str, where: str) -> float | None:
    """A finite number of 0 or more."""
    number = _number(value, name, where)
    if number is not None and not 0.0 <= number <= _MOST:
        raise UsageError(
            f"{where}: {name} is {value_text(value)}; expected a finite number from 0 to "
            f"{_MOST:g}; fix that row"
        )
    return number


def _number(value: Any, name: str, where: str) -> float | None:
    """A number, infinity included, or None for an absent value; text may spell it."""
    if value is None or value == "":
        return None
    try:
        if isinstance(value, str) and value.strip().lower() in ("true", "false"):
            return float(value.strip().lower() == "true")
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if math.isnan(number):
        raise UsageError(
            f"{where}: {name} is {value_text(value)}; expected a number; fix or remove that row"
        )
    return number
