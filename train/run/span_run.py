"""The student's tokens of a run whose student has another tokenizer than the teacher."""

from collections.abc import Sequence
from typing import Any

from caskd.models import open_config
from caskd.store import TeacherStore
from caskd.store.errors import UsageError
from caskd.train.config import TrainConfig
from caskd.train.data import RowWeights, StudentTokens
from caskd.train.model import SpanOptions, student_tokens
from caskd.train.objectives import FACTS, Objective


def check_row_terms(
    config: TrainConfig, row_weights: RowWeights | None, *, one_vocabulary: bool
) -> None:
    """Refuse what reads the teacher's rows, for a student whose rows are others.

    Raises:
        UsageError: a confidence term or row weights, and another tokenizer; or row weights and a
            CALL column.
    """
    if row_weights is not None and (config.delegate is not None or not one_vocabulary):
        found = "another tokenizer" if config.delegate is None else f"--delegate {config.delegate}"
        raise UsageError(
            f"row_weights {row_weights.name}: --student {config.student} has {found}; expected the "
            "teacher's tokenizer and no CALL token; omit row_weights"
        )
    if config.confidence is not None and not one_vocabulary:
        raise UsageError(
            f"--confidence {config.confidence}: --student {config.student} has another tokenizer "
            "than the teacher; expected one with the teacher's; omit --confidence"
        )


def tokens_of_run(
    config: TrainConfig, stores: Sequence[TeacherStore], tokenizer: Any, objective: Objective
) -> tuple[StudentTokens, ...] | None:
    """`student_tokens` with the options of a run.

    Raises:
        CaskdError: as `student_tokens`, or an option would do nothing.
    """
    text_config = open_config(config.student, "--student").get_text_config()
    options = SpanOptions(
        student=f"--student {config.student}",
        objective_name=config.objective,
        objective=objective,
        tail=config.tail,
        data=config.data,
        messages_column=config.messages_column,
        max_length=getattr(text_config, "max_position_embeddings", None),
    )
    tokens = student_tokens(stores, tokenizer, options)
    if tokens is None and config.data and config.delegate not in FACTS:
        raise UsageError(
            f"--data {' '.join(config.data)}: --student {config.student} has the teacher's "
            "tokenizer, and reads the stores alone; expected no --data but for --delegate fact-*; "
            "omit it"
        )
    if tokens is not None and config.best_metric == "kl":
        raise UsageError(
            "--best-metric kl: is not measured for a student with another tokenizer; expected nll, "
            "accuracy or ece; pass one of these"
        )
    return tokens
