"""Outcome tables joined by example: what each model answered to the same questions.

The result has the form of predictions without answers, so that every curve, interval and operating
point is computed by the same code.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from caskd.eval.answers import OUTCOMES, Predictions, digest
from caskd.eval.curves import Price, price_of
from caskd.eval.outcomes.formats import Outcome, read_outcomes
from caskd.store.errors import UsageError
from caskd.store.io import counted, strip_control, value_text

COST, MONEY, CALLS = (
    "cost per example",
    "money per example",
    "calls of the large model per example",
)
"""Units of the cost: of the column, of a price list, or without either."""
MOST_ROWS = 5_000_000
_MOST_NAMES = 12


@dataclass(frozen=True)
class OutcomeTable:
    """The outcomes of the asked models on the examples that all of them answered."""

    models: Mapping[str, Predictions]
    rule: str
    """Rule of the scores: `score`, `confidence`, or `none`."""
    cost_unit: str
    formats: Sequence[str]
    num_rows: int
    """Rows of the asked models."""
    num_incomplete: int
    """Examples that some asked model did not answer; they are left out."""

    def summary(self) -> dict[str, Any]:
        """The table in summary.json."""
        return {
            "formats": list(self.formats),
            "models": list(self.models),
            "num_rows": self.num_rows,
            "num_incomplete": self.num_incomplete,
            "cost_unit": self.cost_unit,
        }

    def warnings(self) -> Iterator[str]:
        """What a reader must know of the table."""
        if self.num_incomplete:
            yield (
                f"{counted(self.num_incomplete, 'example')} of the table lack an outcome of "
                f"{' or '.join(map(strip_control, self.models))} and are left out."
            )
        if self.rule == "none":
            yield (
                "The table has no column score or confidence: all examples are one block, and "
                "the curve is the random line. The oracle is what a perfect score would reach."
            )


@dataclass
class _Collected:
    """Rows of the asked models as they are read."""

    rows: dict[str, dict[str, list[Outcome]]]
    """By model and example."""
    others: dict[str, None] = field(default_factory=dict)
    """Names of some other models, for errors."""
    num_rows: int = 0

    def add(self, outcome: Outcome) -> None:
        """Keep the row of an asked model.

        Raises:
            UsageError: there are too many.
        """
        by_example = self.rows.get(outcome.model)
        if by_example is not None:
            self.num_rows += 1
            if self.num_rows > MOST_ROWS:
                raise UsageError(
                    f"--outcomes: more than {MOST_ROWS:,} rows of the asked models; expected at "
                    "most as many; split the table by task"
                )
            by_example.setdefault(outcome.example, []).append(outcome)
        elif len(self.others) < _MOST_NAMES:
            self.others[outcome.model] = None


def read_table(
    files: Sequence[str], smalls: Sequence[str], large: str, prices: Mapping[str, Price] | None
) -> OutcomeTable:
    """Read outcome tables and join the asked models.

    Args:
        files: the tables; rows of one example and model are samples of one question.
        smalls: models whose answers may be deferred.
        large: the model that answers deferred examples.
        prices: prices of tokens by model name, for tables with token counts and no cost.

    Raises:
        UsageError: a file is not an outcome table, a model is missing, a value is absent, or no
            example has outcomes of all asked models.
    """
    asked = [*smalls, large]
    twice = next((model for model in asked if asked.count(model) > 1), None)
    if twice is not None:
        raise UsageError(
            f"--small, --chain and --large: name {value_text(twice)} twice; expected different "
            "models; name each once"
        )
    collected, formats = _Collected({model: {} for model in asked}), []
    for file in files:
        found, outcomes = read_outcomes(file, asked)
        formats.append(found)
        for outcome in outcomes:
            collected.add(outcome)
    _check_models(collected, files)
    rule = _rule({model: collected.rows[model] for model in smalls})
    examples = _complete(collected.rows)
    rows = {
        model: list(_samples(by_example, collected.rows, examples))
        for model, by_example in collected.rows.items()
    }
    unit, costs = _costs(rows, large, prices)
    tables = {
        model: _columns(
            outcomes,
            rows[large],
            costs[model],
            rule if model in smalls or all(row.rule == rule for row in outcomes) else None,
        )
        for model, outcomes in rows.items()
    }
    source = Path(files[0]).name + (f" and {len(files) - 1} more" if files[1:] else "")
    bounded = all(0.0 <= row.quality <= 1.0 for outcomes in rows.values() for row in outcomes)
    return OutcomeTable(
        models={
            model: Predictions(source, _metadata(model, unit, bounded=bounded), table)
            for model, table in tables.items()
        },
        rule=rule,
        cost_unit=unit,
        formats=sorted({found.name for found in formats}),
        num_rows=collected.num_rows,
        num_incomplete=len({e for by in collected.rows.values() for e in by}) - len(examples),
    )


def _check_models(collected: _Collected, files: Sequence[str]) -> None:
    missing = [model for model, rows in collected.rows.items() if not rows]
    if missing:
        known = [*(model for model, rows in collected.rows.items() if rows), *collected.others]
        names = ", ".join(map(value_text, known)) or "none"
        raise UsageError(
            f"--outcomes {files[0]}{', ...' if files[1:] else ''}: has no row of "
            f"{', '.join(map(value_text, missing))}; expected a model of the table, such as "
            f"{names}; check --small, --chain and --large"
        )


def _rule(rows: Mapping[str, Mapping[str, Sequence[Outcome]]]) -> str:
    """The rule of all rows that have a score."""
    found = {row.rule for by in rows.values() for many in by.values() for row in many} - {"none"}
    if len(found) > 1:
        raise UsageError(
            "--outcomes: some rows have a score, others a confidence; expected one of them in all "
            "rows; remove one"
        )
    return next(iter(found), "none")


def _complete(rows: Mapping[str, Mapping[str, Sequence[Outcome]]]) -> dict[str, int]:
    """Examples that every model answered, in the order of the first model, and their samples.

    Raises:
        UsageError: there is none, or models have different numbers of samples of an example.
    """
    first = next(iter(rows.values()))
    found = {}
    for example in first:
        counts = {model: len(by.get(example, ())) for model, by in rows.items()}
        most = max(counts.values())
        if not all(counts.values()):
            continue
        odd = next((model for model, count in counts.items() if count not in (1, most)), None)
        if odd is not None:
            raise UsageError(
                f"example {value_text(example)}: {value_text(odd)} has {counts[odd]} samples, "
                f"another model {most}; expected as many, or one; fix the table"
            )
        found[example] = most
    if not found:
        raise UsageError(
            f"--outcomes: no example has rows of all of {', '.join(map(value_text, rows))}; "
            "expected shared example ids; check the ids and the names of the models"
        )
    return found


def _samples(
    by_example: Mapping[str, Sequence[Outcome]],
    rows: Mapping[str, Mapping[str, Sequence[Outcome]]],
    examples: Mapping[str, int],
) -> Iterator[Outcome]:
    """One model's rows, the k-th sample of an example beside the k-th of every other model."""
    for example, count in examples.items():
        own = by_example[example]
        tasks = {row.task for by in rows.values() for row in by[example]} - {""}
        if len(tasks) > 1:
            names = " and ".join(map(value_text, sorted(tasks)))
            raise UsageError(
                f"example {value_text(example)}: has the tasks {names}; expected one; fix the table"
            )
        task = next(iter(tasks), "")
        for sample in range(count):
            row = own[sample if len(own) > 1 else 0]
            name = example if count == 1 else f"{example} (sample {sample + 1} of {count})"
            yield row._replace(example=name, task=task)


def _costs(
    rows: Mapping[str, Sequence[Outcome]], large: str, prices: Mapping[str, Price] | None
) -> tuple[str, dict[str, list[float]]]:
    """Unit of the cost, and the cost of each row by model."""
    priced = {model: sum(row.cost is not None for row in own) for model, own in rows.items()}
    if prices is not None:
        if any(priced.values()):
            raise UsageError(
                "--prices: was given, but the table has the column cost; expected one of them; "
                "omit --prices, or remove the column"
            )
        return MONEY, {model: _money(own, model, prices) for model, own in rows.items()}
    if not any(priced.values()):
        return CALLS, {model: [float(model == large)] * len(own) for model, own in rows.items()}
    for model, own in rows.items():
        _check_all(own, [row.cost for row in own], model, "cost")
    return COST, {model: [row.cost or 0.0 for row in own] for model, own in rows.items()}


def _money(own: Sequence[Outcome], model: str, prices: Mapping[str, Price]) -> list[float]:
    price = price_of(prices, model)
    for name in ("prompt_tokens", "output_tokens"):
        _check_all(own, [getattr(row, name) for row in own], model, name)
    return [
        ((row.prompt_tokens or 0.0) * price.prompt + (row.output_tokens or 0.0) * price.output)
        / 1e6
        for row in own
    ]


def _check_all(
    own: Sequence[Outcome], values: Sequence[float | None], model: str, name: str
) -> None:
    """Refuse a column that only some rows of a model have."""
    absent = next((i for i, value in enumerate(values) if value is None), None)
    if absent is not None:
        raise UsageError(
            f"example {value_text(own[absent].example)}, model {value_text(model)}: has no {name} "
            f"({values.count(None):,} such rows); expected one in each row; add them"
        )


def _columns(
    own: Sequence[Outcome], others: Sequence[Outcome], costs: Sequence[float], rule: str | None
) -> pa.Table:
    """The columns of predictions that an outcome table has; no score with a rule of None."""
    names = [row.example for row in own]
    if len(set(names)) < len(names):
        raise UsageError(
            "--outcomes: an example is named like a sample of another; expected ids that do not "
            "end in (sample N of M); rename it"
        )
    nothing = pa.array([""] * len(own), pa.string())
    columns = {
        "example_id": pa.array(names, pa.string()),
        "question_digest": pa.array([digest(row.question.encode()) for row in others]),
        "prompt_digest": nothing,
        "task": pa.array([row.task for row in own], pa.string()),
        "text": nothing,
        "reference": nothing,
        "quality": pa.array([row.quality for row in own], pa.float64()),
        "cost": pa.array(costs, pa.float64()),
    }
    if rule is not None:
        scores = [row.score for row in own] if rule != "none" else [0.0] * len(own)
        _check_all(own, scores, own[0].model, rule)
        columns["score"] = pa.array([[score] for score in scores], pa.list_(pa.float64()))
    if all(row.latency_ms is not None for row in own):
        seconds = [(row.latency_ms or 0.0) / 1000 for row in own]
        columns["seconds"] = pa.array(seconds, pa.float64())
    return pa.table(columns)


def _metadata(model: str, unit: str, *, bounded: bool) -> dict[str, Any]:
    return {
        "kind": OUTCOMES,
        "model": {"name": model},
        "quality": "the column quality",
        "bounded": bounded,
        "cost_unit": unit,
        "decoding": {},
    }
