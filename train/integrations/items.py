"""Examples as items of a dataset, and as the tensors of a batch.

Legend: B examples, T tokens, N rows, C spans, P rows with a top-k.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from caskd.store import StoreBatch
from caskd.store.corpus import logit_positions
from caskd.train.data import LeftOut, SpanExample, collate_spans, teacher_rows
from caskd.train.loss import IGNORE_LABEL, MappedRows, TeacherRows, TeacherSpans

Example = dict[str, Any]

TEACHER = "teacher_"
"""Prefix of the teacher rows."""
SPANS = "spans"
"""Key of an item's spans."""
_ROW, _LIKELIHOOD, _CORRECT, _MAPPED = (
    "span_of_row",
    "span_log_likelihood",
    "span_correct",
    "mapped_",
)
_TOPK = tuple(field.name for field in fields(TeacherRows))


def span_item(example: SpanExample | LeftOut, pad_id: int) -> Example:
    """`input_ids` and `labels` [T], `logit_positions` [N], and `spans`: the example.

    One that is left out becomes a token without rows.
    """
    if isinstance(example, LeftOut):
        return {
            "input_ids": torch.tensor([pad_id]),
            "labels": torch.tensor([IGNORE_LABEL]),
            "logit_positions": torch.zeros(0, dtype=torch.long),
            SPANS: example,
        }
    aligned = example.aligned
    ids = torch.from_numpy(aligned.token_ids.astype(np.int64))
    positions = torch.from_numpy(logit_positions(aligned.is_response))
    labels = torch.full_like(ids, IGNORE_LABEL)
    labels[positions + 1] = ids[positions + 1]
    return {"input_ids": ids, "labels": labels, "logit_positions": positions, SPANS: example}


def span_tensors(examples: Sequence[SpanExample | LeftOut], pad_id: int) -> dict[str, Tensor]:
    """The spans of a batch: `span_of_row` [N], `span_log_likelihood` and `span_correct` [C], and
    where a top-k is mapped, `mapped_row` [P] and the fields of `TeacherRows` [P]."""
    spans = collate_spans(examples, pad_id).spans
    assert spans is not None
    found = {_ROW: spans.of_row, _LIKELIHOOD: spans.log_likelihood, _CORRECT: spans.correct}
    if spans.mapped is not None:
        teacher = spans.mapped.teacher
        topk = {_MAPPED + name: getattr(teacher, name) for name in _TOPK}
        found |= {_MAPPED + "row": spans.mapped.row, **topk}
    return found


def spans_of(batch: Mapping[str, Tensor]) -> TeacherSpans | None:
    """The spans of a batch; None if the student has the teacher's tokenizer."""
    if _ROW not in batch:
        return None
    mapped = None
    if _MAPPED + "row" in batch:
        teacher = TeacherRows(**{name: batch[_MAPPED + name] for name in _TOPK})
        mapped = MappedRows(batch[_MAPPED + "row"], teacher)
    return TeacherSpans(batch[_ROW], batch[_LIKELIHOOD], batch[_CORRECT], mapped)


def num_terms(batch: Mapping[str, Tensor]) -> int:
    """Terms of a batch's loss: its spans, or its rows."""
    return len(batch.get(_CORRECT, batch["gather_index"]))


def split(batch: StoreBatch) -> Iterator[Example]:
    """The examples of a batch, one by one."""
    tokens = torch.from_numpy(batch.token_ids.astype(np.int64))
    row_labels = torch.from_numpy(batch.labels.astype(np.int64))
    positions = torch.from_numpy(batch.logit_positions)
    teacher = vars(teacher_rows(batch))
    rows = {TEACHER + name: column for name, column in teacher.items() if column is not None}
    token_offsets, row_offsets = batch.token_offsets.tolist(), batch.row_offsets.tolist()
    for index in range(len(batch.example_indices)):
        in_tokens = slice(token_offsets[index], token_offsets[index + 1])
        in_rows = slice(row_offsets[index], row_offsets[index + 1])
        labels = torch.full((in_tokens.stop - in_tokens.start,), IGNORE_LABEL)
        labels[positions[in_rows] + 1] = row_labels[in_rows]
        yield {
            "input_ids": tokens[in_tokens],
            "labels": labels,
            "logit_positions": positions[in_rows],
            **{name: column[in_rows] for name, column in rows.items()},
        }


def _padded_to_widest(columns: list[Tensor]) -> list[Tensor]:
    """Columns [N, k] of stores with different k, padded to the largest k; `num_kept` masks that."""
    if columns[0].ndim == 1:
        return columns
    widest = max(column.shape[1] for column in columns)
    filler = float("-inf") if columns[0].is_floating_point() else 0
    pad = torch.nn.functional.pad
    return [pad(column, (0, widest - column.shape[1]), value=filler) for column in columns]


def collate_items(examples: Sequence[Mapping[str, Any]], pad_id: int) -> dict[str, Tensor]:
    """The batch that `StoreDataset.collate` describes."""
    lengths = [len(example["input_ids"]) for example in examples]
    batch = {
        name: torch.nn.utils.rnn.pad_sequence(
            [example[name] for example in examples], batch_first=True, padding_value=filler
        )
        for name, filler in (("input_ids", pad_id), ("labels", IGNORE_LABEL))
    }
    longest = max(lengths)
    batch["attention_mask"] = (torch.arange(longest) < torch.tensor(lengths)[:, None]).long()
    if "logit_positions" in examples[0]:
        index = [e["logit_positions"] + b * longest for b, e in enumerate(examples)]
        batch["gather_index"] = torch.cat(index)
    if SPANS in examples[0]:
        batch |= span_tensors([example[SPANS] for example in examples], pad_id)
    for name in examples[0]:
        if name.startswith(TEACHER):
            batch[name] = torch.cat(_padded_to_widest([example[name] for example in examples]))
    return batch
