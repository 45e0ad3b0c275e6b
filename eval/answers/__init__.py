"""Predictions files, and the arms and seeds that they form."""

from caskd.eval.answers.arms import Run, label_seeds, read_runs, seeds_of, split_name
from caskd.eval.answers.checks import CASCADE_COUNTS, OUTCOMES, is_bounded
from caskd.eval.answers.predictions_file import (
    SERVED,
    TOKEN_CASCADE,
    WHOLE,
    Predictions,
    digest,
    predictions_bytes,
    read_own_columns,
    read_predictions,
    table_of,
)
from caskd.eval.answers.questions import Units, num_units, question_names, question_units
from caskd.eval.answers.ragged import Ragged

__all__ = [
    "CASCADE_COUNTS",
    "OUTCOMES",
    "SERVED",
    "TOKEN_CASCADE",
    "WHOLE",
    "Predictions",
    "Ragged",
    "Run",
    "Units",
    "digest",
    "is_bounded",
    "label_seeds",
    "num_units",
    "predictions_bytes",
    "question_names",
    "question_units",
    "read_own_columns",
    "read_predictions",
    "read_runs",
    "seeds_of",
    "split_name",
    "table_of",
]
