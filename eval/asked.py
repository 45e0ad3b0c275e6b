"""The questions behind predictions: their files hold a digest of each, the data holds the words."""

from collections.abc import Sequence
from dataclasses import replace

import pyarrow as pa

from caskd.eval.predictions import Predictions, digest
from caskd.eval.questions import question_text
from caskd.store.corpus import Columns, read_records
from caskd.store.errors import IdentityError


def read_questions(files: Sequence[str], columns: Columns) -> dict[str, str]:
    """Every question in the data, by its digest.

    Raises:
        UsageError: the data cannot be read or has no such column.
    """
    questions: dict[str, str] = {}
    for number, record in enumerate(read_records(files)):
        if number == 0:
            columns = replace(columns, kind="messages" if columns.messages in record else "prompt")
        text = question_text(record, columns)
        questions[digest(text.encode())] = text
    return questions


def with_questions(predictions: Predictions, questions: dict[str, str]) -> Predictions:
    """The predictions with the questions as the column `prompt`.

    Raises:
        IdentityError: the data does not hold a question that was asked.
    """
    digests = predictions.strings("question_digest")
    missing = sum(one not in questions for one in digests)
    if missing:
        raise IdentityError(
            f"--data holds {len(digests) - missing:,} of the {len(digests):,} questions of "
            f"{predictions.source}, expected all: give the files that caskd predict was given"
        )
    column = pa.array([questions[one] for one in digests], pa.string())
    table = predictions.columns.append_column("prompt", column)
    return Predictions(predictions.source, predictions.metadata, table)
