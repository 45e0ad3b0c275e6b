"""The student's tokens of a run whose student has another tokenizer than the teacher."""

from collections.abc import Sequence
from typing import Any

from caskd.models import open_config
from caskd.store import TeacherStore
from caskd.store.errors import UsageError
from caskd.train.config import TrainConfig
from caskd.train.data import StudentTokens
from caskd.train.model import SpanOptions, student_tokens
from caskd.train.objectives import Objective


def check_vocabulary_of_options(config: TrainConfig) -> None:
    """Refuse options that a student with another tokenizer does not have.

    Raises:
        UsageError: --confidence or --mask is given.
    """
    for flag, value in (("--confidence", config.confidence), ("--mask", config.mask)):
        if value is not None:
            raise UsageError(
                f"{flag} {value}: --student {config.student} has another tokenizer than the "
                f"teacher; expected one with the teacher's; omit {flag}"
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
    if tokens is None and config.data:
        raise UsageError(
            f"--data {' '.join(config.data)}: --student {config.student} has the teacher's "
            "tokenizer, and reads the stores alone; expected no --data; omit it"
        )
    if tokens is not None and config.best_metric == "kl":
        raise UsageError(
            "--best-metric kl: is not measured for a student with another tokenizer; expected nll, "
            "accuracy or ece; pass one of these"
        )
    return tokens
