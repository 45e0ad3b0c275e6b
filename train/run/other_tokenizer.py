"""A run whose student has another tokenizer than the teacher: whether it is one, and its spans."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from caskd.models import check_vocabulary
from caskd.store import TeacherStore
from caskd.store.corpus import token_bytes, vocab_digest
from caskd.store.errors import IdentityError, UsageError
from caskd.train.config import TrainConfig
from caskd.train.data import MixedOrder, StoreMix, StudentTokens
from caskd.train.objectives import Objective

SAMPLE = 256
"""Examples that are aligned before a run starts."""


@dataclass(frozen=True)
class AlignmentStats:
    """How a student's tokens align with the teacher's, over a sample of examples."""

    num_examples: int
    num_other_bytes: int
    """Examples whose replies have other bytes in the student's tokens."""
    num_teacher_rows: int
    num_student_rows: int
    num_spans: int
    num_pairs: int
    """Spans of one token on both sides."""
    longest_teacher: int
    """Teacher tokens of the longest span."""
    longest_student: int
    longest_example: int
    """Student tokens of the longest example."""

    @property
    def other_bytes(self) -> float:
        """Share of the examples with other bytes."""
        return self.num_other_bytes / max(1, self.num_examples)

    def line(self) -> str:
        """For people."""
        rows, spans = max(1, self.num_teacher_rows), max(1, self.num_spans)
        return (
            f"{self.num_pairs / rows:.1%} of the teacher's tokens are one token of the student; "
            f"{rows / spans:.2f} and {self.num_student_rows / spans:.2f} tokens per span (most: "
            f"{self.longest_teacher} and {self.longest_student}); {self.num_other_bytes} of "
            f"{self.num_examples} sampled examples have other bytes"
        )


def student_tokens(
    config: TrainConfig, store: StoreMix, tokenizer: Any, objective: Objective
) -> tuple[StudentTokens, ...] | None:
    """The student's tokens of each store; None where it shares the vocabulary of all of them.

    Raises:
        IdentityError: the objective needs one vocabulary, and the student has another.
        UsageError: a store lacks what the objective reads, or its text cannot be rendered.
    """
    own = vocab_digest(token_bytes(tokenizer))
    shared = all(one.spec.vocab_digest == own for one in store.stores)
    if shared and not objective.matches_spans:
        return None
    if objective.needs_distribution:
        _refuse_distribution(config, store, tokenizer)
    for one in store.stores:
        _check_store(one, objective, config.objective)
    return tuple(StudentTokens(tokenizer, one) for one in store.stores)


def _refuse_distribution(config: TrainConfig, store: StoreMix, tokenizer: Any) -> None:
    flag = f"--student {config.student}"
    other = "cat-alm" if config.objective.startswith("cat") else "alm"
    try:
        for one in store.stores:
            check_vocabulary(tokenizer, one.spec, flag)
    except IdentityError as error:
        raise IdentityError(
            f"{error}; or pass --objective {other}, which matches likelihoods of spans of text"
        ) from None


def _check_store(store: TeacherStore, objective: Objective, name: str) -> None:
    """Refuse a store that lacks what the objective reads."""
    fields = store.spec.capture_fields
    for needed, field, wanted in (
        (objective.w < 1, "label", "exact"),
        (objective.rule in ("either", "teacher"), "argmax", "exact"),
    ):
        if needed and fields[field] != wanted:
            raise UsageError(
                f"--store {store.name}: capture.{field} is {fields[field]}; --objective {name} "
                f"expects {wanted}; pass --objective xent, or another store"
            )
    if store.spec.identity["text"]["kind"] == "messages":
        raise UsageError(
            f"--store {store.name}: holds conversations, which a student with another tokenizer "
            "must see in its own chat template; expected a store of prompts and responses, or of "
            "texts; pass such a store, or a student with the teacher's tokenizer"
        )


def sample_alignment(
    store: StoreMix, tokens: Sequence[StudentTokens], order: MixedOrder
) -> AlignmentStats:
    """Align the first examples of a run."""
    examples = order.examples_for_step(0, min(SAMPLE, order.num_examples))
    counts = np.zeros(9, np.int64)
    for number, batch, _ in store.read_apart(examples, ("num_kept",)):
        for aligned in tokens[number].align(batch):
            counts[:2] += 1, aligned is None
            if aligned is None:
                continue
            teacher, student = (
                np.bincount(span[span >= 0], minlength=aligned.num_spans)
                for span in (aligned.teacher_span, aligned.student_span)
            )
            pairs = np.count_nonzero((teacher == 1) & (student == 1))
            counts[2:6] += np.array([teacher.sum(), student.sum(), aligned.num_spans, pairs])
            longest = teacher.max(initial=0), student.max(initial=0), len(aligned.token_ids)
            counts[6:] = np.maximum(counts[6:], longest)
    return AlignmentStats(*counts.tolist())


def check_other_bytes(num_other: int, num_examples: int, allowed: float) -> None:
    """Stop a run in which too many examples have other bytes in the student's tokens.

    Args:
        num_other: examples with other bytes so far.
        num_examples: examples so far; fewer than `SAMPLE` count as so many.
        allowed: share of the examples.

    Raises:
        UsageError: more than the allowed share.
    """
    share = num_other / max(SAMPLE, num_examples)
    if share > allowed:
        raise UsageError(
            f"--student: {num_other:,} of {num_examples:,} examples ({share:.1%}) have replies "
            "whose bytes the student's tokenizer changes, so that they teach nothing; expected at "
            f"most {allowed:.1%}; pass another student, or --allow-other-bytes {share * 1.2:.2f}"
        )


def span_lines(stats: AlignmentStats, *, shares_vocabulary: bool) -> Iterator[str]:
    """The lines of a plan."""
    yield f"spans        {stats.line()}"
    if shares_vocabulary:
        yield (
            "note         the student has the teacher's vocabulary: dist and cat-dist use the "
            "teacher's whole top-k"
        )
