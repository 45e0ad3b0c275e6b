"""Batches of a student whose tokenizer is not the teacher's: its own tokens, in spans.

Legend: G examples of a step, B of a micro-batch, T their student tokens, N their student rows,
C spans.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from caskd.store import StoreBatch
from caskd.store.corpus import logit_positions, row_labels
from caskd.store.format import TOPK
from caskd.train.data.batches import MicroBatch, StepBatch, StepReader, collate
from caskd.train.data.mapped_topk import MappedTopK, map_topk
from caskd.train.data.order import IntArray
from caskd.train.data.random_mask import RandomMask
from caskd.train.data.spans import NO_SPAN
from caskd.train.data.store_mix import StoreMix
from caskd.train.data.student_tokens import AlignedExample, LeftOut, StudentTokens
from caskd.train.loss import MappedRows, TeacherRows, TeacherSpans
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
    mapped_rows: IntArray | None = None
    """[P] the student's rows that have a top-k; None where no top-k is read."""
    mapped: MappedTopK | None = None
    """[P] of these rows."""


def span_fields(objective: Objective) -> tuple[str, ...]:
    """The row fields that a span objective reads."""
    likelihood = ("label_logit", "logsumexp") if objective.w < 1 else ()
    distribution = TOPK.distribution if objective.maps_topk else ()
    return tuple(dict.fromkeys(("argmax", "num_kept", *likelihood, *distribution)))


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
            example = _valued(aligned, likelihood[rows], right[rows])
            if batch.topk_ids is not None:
                example = _with_topk(example, batch, rows.start, tokens)
            found.append(example)
        else:
            found.append(aligned)
    return found


def read_spans(
    store: StoreMix, examples: IntArray, row_fields: Sequence[str], tokens: Sequence[StudentTokens]
) -> list[SpanExample | LeftOut]:
    """Examples of several stores, in the given order.

    Args:
        store: the stores.
        examples: numbers that count through all of them.
        row_fields: `span_fields` of the objective.
        tokens: of each store.
    """
    found: list[SpanExample | LeftOut] = [LeftOut.OTHER_BYTES] * len(examples)
    for number, batch, indices in store.read_apart(examples, row_fields):
        made = span_examples(batch, tokens[number])
        for index, example in zip(indices.tolist(), made, strict=True):
            found[index] = example
    return found


def _valued(
    aligned: AlignedExample, likelihood: Floats, right: npt.NDArray[np.bool_]
) -> SpanExample:
    inside = aligned.teacher_span != NO_SPAN
    span, count = aligned.teacher_span[inside], aligned.num_spans
    total = np.bincount(span, weights=likelihood[inside], minlength=count).astype(np.float64)
    num_wrong = np.bincount(span, weights=~right[inside], minlength=count)
    return SpanExample(aligned, total, num_wrong == 0)


def _with_topk(
    example: SpanExample, batch: StoreBatch, first: int, tokens: StudentTokens
) -> SpanExample:
    """The example with the top-k of its spans of one token of both models.

    Where the labels are not the same token, such as a word with and without an inserted space, the
    two distributions are not over the same texts.

    Args:
        first: the example's first row in the batch.
    """
    aligned, table = example.aligned, tokens.shared_ids
    teacher, student = aligned.one_to_one()
    teacher = teacher + first
    own_labels = row_labels(aligned.token_ids, aligned.is_response)
    same = table[batch.labels[teacher]] == own_labels[student]
    teacher, student = teacher[same], student[same]
    logits, logsumexp = batch.column("topk_logits"), batch.column("logsumexp")
    mapped = map_topk(
        batch.column("topk_ids")[teacher],
        logits[teacher].astype(np.float64) - logsumexp[teacher].astype(np.float64)[:, None],
        batch.column("num_kept")[teacher],
        batch.column("tail_mass")[teacher].astype(np.float64),
        table,
    )
    has_cells = mapped.num_kept > 0
    return replace(example, mapped_rows=student[has_cells], mapped=mapped.take(has_cells))


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
        _mapped_rows(examples),
    )
    return replace(collate(_tokens_only(aligned), pad_id, packed=packed), spans=spans)


def _mapped_rows(examples: Sequence[SpanExample | LeftOut]) -> MappedRows | None:
    """The rows of a batch that have a top-k; None if there is none."""
    rows, parts, start = [], [], 0
    for example in examples:
        if isinstance(example, LeftOut):
            continue
        if example.mapped is not None and example.mapped_rows is not None:
            rows.append(example.mapped_rows + start)
            parts.append(example.mapped)
        start += len(example.aligned.student_span)
    if not sum(map(len, rows)):
        return None
    widest = max(part.ids.shape[1] for part in parts)
    ids = np.concatenate([_widened(part.ids, widest) for part in parts])
    mass = np.concatenate([_widened(part.mass, widest) for part in parts])
    with np.errstate(divide="ignore"):  # padding is -inf
        log_mass = np.log(mass).astype(np.float32)
    tail = np.concatenate([part.tail_mass for part in parts]).astype(np.float32)
    num_kept = np.concatenate([part.num_kept for part in parts])
    teacher = TeacherRows(
        argmax=torch.from_numpy(ids[:, 0]),
        topk_ids=torch.from_numpy(ids),
        topk_logits=torch.from_numpy(log_mass),
        num_kept=torch.from_numpy(num_kept),
        logsumexp=torch.zeros(len(tail)),
        tail_mass=torch.from_numpy(tail),
    )
    return MappedRows(torch.from_numpy(np.concatenate(rows)), teacher)


def _widened(cells: npt.NDArray[Any], width: int) -> npt.NDArray[Any]:
    return np.pad(cells, ((0, 0), (0, width - cells.shape[1])))


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
    mask: RandomMask | None = None

    def steps(self, first: int, stop: int) -> Iterator[StepBatch]:
        """The batches of steps `first` to `stop` - 1."""
        for step, examples, by_store in self.examples_of_steps(first, stop):
            aligned = read_spans(self.store, examples, self.row_fields, self.tokens)
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
                matched=mapped_shares(aligned),
            )

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


def mapped_shares(examples: Sequence[SpanExample | LeftOut]) -> dict[str, float | None]:
    """Share of the spans that have a top-k, and the mean teacher mass there whose tokens the
    student has (None without such a span); empty where no top-k is read."""
    parts = [e.mapped for e in examples if isinstance(e, SpanExample) and e.mapped is not None]
    if not parts:
        return {}
    tails = np.concatenate([part.tail_mass for part in parts])
    return {
        "mapped_spans": len(tails) / max(1, int(_span_counts(examples).sum())),
        "mapped_mass": 1 - float(tails.mean()) if len(tails) else None,
    }


def _span_counts(examples: Sequence[SpanExample | LeftOut]) -> npt.NDArray[np.int64]:
    return np.array([e.aligned.num_spans if isinstance(e, SpanExample) else 0 for e in examples])
