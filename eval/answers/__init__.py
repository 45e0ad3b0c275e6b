"""Predictions files, and the arms and seeds that they form."""

from caskd.eval.answers.arms import Run, label_seeds, read_runs, seeds_of, split_name
from caskd.eval.answers.predictions_file import (
    WHOLE,
    Predictions,
    digest,
    predictions_bytes,
    read_predictions,
    table_of,
)
from caskd.eval.answers.ragged import Ragged

__all__ = [
    "WHOLE",
    "Predictions",
    "Ragged",
    "Run",
    "digest",
    "label_seeds",
    "predictions_bytes",
    "read_predictions",
    "read_runs",
    "seeds_of",
    "split_name",
    "table_of",
]
