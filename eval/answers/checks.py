"""Values that no predictions file may hold: each refused by file, row and column in one line.

Legend: E examples, T values of all lists of a column together.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from caskd.eval.answers.ragged import Ragged
from caskd.eval.metrics import is_known
from caskd.store.errors import UsageError

FloatArray = npt.NDArray[np.float64]

CASCADE_COUNTS = (
    "num_small_tokens", "num_large_tokens", "num_drafted", "num_accepted",
    "num_small_forwards", "num_large_forwards", "num_small_computed", "num_large_computed",
)  # fmt: skip
"""Columns of a token cascade: what each model chose, drafted and computed for an answer."""

OUTCOMES = "outcomes"
"""`kind` in the metadata of rows of an outcome table."""
ROUNDING = 1e-4
"""A log-probability of a server in half precision may exceed 0 by that much."""
_LARGEST = float(np.finfo(np.float64).max)


@dataclass(frozen=True)
class Bounds:
    """Values of a column, ends included; NaN is never one."""

    low: float
    high: float
    words: str
    """What was expected, for messages."""


_COUNT = Bounds(0.0, _LARGEST, "0 or more")
_LOGPROB = Bounds(-math.inf, ROUNDING, "a log-probability, 0 or less")
_FINITE = Bounds(-_LARGEST, _LARGEST, "a finite number")
_BOUNDS: Mapping[str, Bounds] = {
    "quality": Bounds(0.0, 1.0, "a quality from 0 to 1"),
    "prompt_tokens": _COUNT,
    "output_tokens": _COUNT,
    "seconds": Bounds(0.0, _LARGEST, "finite seconds, 0 or more"),
    "token_logprobs": _LOGPROB,
    "option_logprobs": _LOGPROB,
    "token_margins": Bounds(-ROUNDING, math.inf, "a margin, 0 or more"),
    "token_entropies": Bounds(-ROUNDING, _LARGEST, "a finite entropy, 0 or more"),
    "hidden": _FINITE,
    **dict.fromkeys(CASCADE_COUNTS, _COUNT),
    "expected_acceptance": Bounds(-ROUNDING, 1.0 + ROUNDING, "a probability from 0 to 1"),
}


def check_values(file: str, table: pa.Table, metadata: Mapping[str, Any]) -> None:
    """Refuse numbers that cannot be what their column holds.

    The quality of a metric that caskd does not know may be any finite number. A log-probability of
    -inf is accepted: its answer is deferred first.

    Raises:
        UsageError: a value is out of its bounds.
    """
    for name, bounds in _BOUNDS.items():
        if name not in table.column_names:
            continue
        if name == "quality" and not is_bounded(metadata):
            bounds = _FINITE
        values, offsets = _values(table.column(name))
        bad = np.flatnonzero(~((values >= bounds.low) & (values <= bounds.high)))
        if bad.size:
            row = int(np.searchsorted(offsets, bad[0], side="right")) - 1
            example = table.column("example_id")[row].as_py()
            raise UsageError(
                f"{file}: row {row} (example {example!r}), column {name}: got "
                f"{values[bad[0]]:g}, expected {bounds.words} ({bad.size:,} such values); "
                "fix them, or rerun caskd predict"
            )


def is_bounded(metadata: Mapping[str, Any]) -> bool:
    """Whether quality is from 0 to 1: of metrics that caskd knows, or of all rows of a table."""
    if metadata.get("kind") == OUTCOMES:
        return bool(metadata["bounded"])
    return all(map(is_known, _metrics(metadata)))


def _values(column: pa.ChunkedArray) -> tuple[FloatArray, npt.NDArray[np.int64]]:
    """All values [T], and where each example's start [E + 1]."""
    if pa.types.is_list(column.type):
        rows = Ragged.of_column(column)
        return rows.values, rows.offsets
    values = column.to_numpy().astype(np.float64)
    return values, np.arange(values.size + 1)


def _metrics(metadata: Mapping[str, Any]) -> Iterator[str]:
    """Names of the metrics that scored a file."""
    tasks = metadata.get("tasks")
    if isinstance(tasks, dict) and tasks:
        yield from (str(task["metric"]) for task in tasks.values())
        return
    for part in str(metadata["quality"]).split("; "):
        yield re.split(r"[/ ]", part)[0]


def num_parameters(value: object) -> int | None:
    """A number of parameters in metadata, if it is one: a whole number above 0."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        return None
    return value
