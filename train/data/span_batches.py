"""Batches of a student whose tokenizer is not the teacher's: its own tokens, in spans.

Legend: G examples of a step, B of a micro-batch, T their student tokens, N their student rows,
C spans.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from caskd.store import StoreBatch
from caskd.store.corpus import logit_positions, row_labels
from caskd.train.data.batches import MicroBatch, StepBatch, StepReader, collate
from caskd.train.data.order import IntArray
from caskd.train.data.spans import NO_SPAN
from caskd.train.data.student_tokens import AlignedExample, LeftOut, StudentTokens
from caskd.train.loss import TeacherSpans
from caskd.train.objectives import Objective

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class SpanExample:
    """An example in the student's tokens, with the teacher's values of its spans."""

    aligned: AlignedExample
    log_likelihood: Floats
    """[C] sum of label_logit - logsumexp, nats; 0 where these were not read."""
    correct: npt.NDArray[np.bool_]
    """[C] every label is the teacher's argmax."""


def span_fields(objective: Objective) -> tuple[str, ...]:
    """The row fields that a span objective reads."""
    likelihood = ("label_logit", "logsumexp") if objective.w < 1 else ()
    return ("argmax", "num_kept", *likelihood)


def span_examples(batch: StoreBatch, tokens: StudentTokens) -> list[SpanExample | LeftOut]:
    """The examples of a batch.

    Args:
        batch: with the fields `span_fields`.
        tokens: of the batch's store.
    """
    right = batch.column("argmax") == batch.labels
    likelihood = np.zeros(batch.num_rows, np.float64)
    if batch.label_logit is not None:
        likelihood = batch.label_logit.astype(np.float64) - batch.column("logsumexp")
    found: list[SpanExample | LeftOut] = []
    for number, aligned in enumerate(tokens.align(batch)):
        rows = slice(batch.row_offsets[number], batch.row_offsets[number + 1])
        if isinstance(aligned, AlignedExample):
            found.append(_valued(aligned, likelihood[rows], right[rows]))
        else:
            found.append(aligned)
    return found


def _valued(
    aligned: AlignedExample, likelihood: Floats, right: npt.NDArray[np.bool_]
) -> SpanExample:
    inside = aligned.teacher_span != NO_SPAN
    span, count = aligned.teacher_span[inside], aligned.num_spans
    total = np.bincount(span, weights=likelihood[inside], minlength=count).astype(np.float64)
    num_wrong = np.bincount(span, weights=~right[inside], minlength=count)
    return SpanExample(aligned, total, num_wrong == 0)


def collate_spans(
    examples: Sequence[SpanExample | LeftOut], pad_id: int, *, packed: bool = False
) -> MicroBatch:
    """Lay examples out as `collate` does. One that is left out becomes a token without rows."""
    none = np.zeros(0, np.int64)
    empty = AlignedExample(
        np.array([pad_id], np.uint32), np.zeros(1, np.uint8), none, none, num_spans=0, num_bytes=0
    )
    known = [example for example in examples if isinstance(example, SpanExample)]
    aligned = [e.aligned if isinstance(e, SpanExample) else empty for e in examples]
    counts = np.array([example.num_spans for example in aligned])
    starts, total = np.cumsum(counts) - counts, int(counts.sum())
    of_row = [
        np.where(example.student_span == NO_SPAN, total, example.student_span + start)
        for example, start in zip(aligned, starts.tolist(), strict=True)
    ]
    spans = TeacherSpans(
        torch.from_numpy(np.concatenate(of_row)),
        torch.from_numpy(np.concatenate([np.zeros(0), *(e.log_likelihood for e in known)])),
        torch.from_numpy(np.concatenate([np.zeros(0, bool), *(e.correct for e in known)])),
    )
    return replace(collate(_tokens_only(aligned), pad_id, packed=packed), spans=spans)


def _tokens_only(aligned: Sequence[AlignedExample]) -> StoreBatch:
    """The student's tokens, positions and labels as a batch without row fields."""
    return StoreBatch(
        example_indices=np.arange(len(aligned)),
        token_ids=np.concatenate([example.token_ids for example in aligned]),
        is_response=np.concatenate([example.is_response for example in aligned]),
        token_offsets=np.cumsum([0, *(len(example.token_ids) for example in aligned)]),
        row_offsets=np.cumsum([0, *(len(example.student_span) for example in aligned)]),
        logit_positions=np.concatenate([logit_positions(e.is_response) for e in aligned]),
        labels=np.concatenate([row_labels(e.token_ids, e.is_response) for e in aligned]),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class SpanReader(StepReader):
    """Reads the batches of one rank, as `BatchReader` does.

    Every rank aligns all examples of a step: their lengths decide the split, and the number of
    their spans is the divisor of the loss.

    Attributes:
        tokens: of each store.
    """

    tokens: Sequence[StudentTokens]

    def steps(self, first: int, stop: int) -> Iterator[StepBatch]:
        """The batches of steps `first` to `stop` - 1."""
        for step, examples, by_store in self.examples_of_steps(first, stop):
            aligned = self._aligned(examples)
            lengths = np.array(
                [len(e.aligned.token_ids) if isinstance(e, SpanExample) else 1 for e in aligned],
                np.int32,
            )
            parts = self.split.parts(np.arange(len(examples)), lengths)
            yield StepBatch(
                step=step,
                micro_batches=tuple(
                    self._micro_batch(step, examples[part[self.rank]], aligned, part[self.rank])
                    for part in parts
                ),
                num_rows=int(_span_counts(aligned).sum()),
                num_examples=len(examples),
                examples_per_store=by_store,
                left_out={reason.value: aligned.count(reason) for reason in LeftOut},
            )

    def _aligned(self, examples: IntArray) -> list[SpanExample | LeftOut]:
        """The examples of a step, in order."""
        found: list[SpanExample | LeftOut] = [LeftOut.OTHER_BYTES] * len(examples)
        for number, batch, indices in self.store.read_apart(examples, self.row_fields):
            made = span_examples(batch, self.tokens[number])
            for index, example in zip(indices.tolist(), made, strict=True):
                found[index] = example
        return found

    def _micro_batch(
        self,
        step: int,
        examples: IntArray,
        aligned: Sequence[SpanExample | LeftOut],
        indices: IntArray,
    ) -> MicroBatch:
        chosen = [aligned[index] for index in indices.tolist()]
        batch = collate_spans(chosen, self.pad_id, packed=self.split.packed)
        if self.mask is not None:
            keep = self.mask.keep_counts(step, examples, _span_counts(chosen))
            batch = replace(batch, keep=torch.from_numpy(keep))
        return batch.pin() if self.pin_memory else batch


def _span_counts(examples: Sequence[SpanExample | LeftOut]) -> npt.NDArray[np.int64]:
    return np.array([e.aligned.num_spans if isinstance(e, SpanExample) else 0 for e in examples])
