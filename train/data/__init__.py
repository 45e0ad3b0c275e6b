"""From stores to micro-batches: order, mixture, packing, prefetch, random masks."""

from caskd.train.data.batches import (
    BatchReader,
    MicroBatch,
    StepBatch,
    collate,
    fields_to_read,
    teacher_rows,
)
from caskd.train.data.micro_steps import MicroBatchSplit, accumulation_steps, check_budget
from caskd.train.data.mixture import MixedOrder, shares
from caskd.train.data.order import stream_positions
from caskd.train.data.packing import keeps_examples_apart
from caskd.train.data.prefetch import Prefetcher
from caskd.train.data.random_mask import RandomMask, read_fractions
from caskd.train.data.row_weights import (
    RowWeights,
    WeighedRows,
    check_weighed_fields,
    checked_weights,
)
from caskd.train.data.span_batches import (
    SpanExample,
    SpanReader,
    collate_spans,
    mapped_shares,
    read_spans,
    span_examples,
    span_fields,
)
from caskd.train.data.spans import Spans, align_tokens
from caskd.train.data.store_mix import StoreMix, many_epochs
from caskd.train.data.student_mask import (
    StudentMask,
    label_nll,
    learnable_gain,
    learnable_rows,
    mask_of,
    reachable_rows,
    read_mask,
    row_scores,
    write_mask,
)
from caskd.train.data.student_tokens import (
    AlignedExample,
    LeftOut,
    StudentTokens,
    own_vocabulary,
)

__all__ = [
    "AlignedExample",
    "BatchReader",
    "LeftOut",
    "MicroBatch",
    "MicroBatchSplit",
    "MixedOrder",
    "Prefetcher",
    "RandomMask",
    "RowWeights",
    "SpanExample",
    "SpanReader",
    "Spans",
    "StepBatch",
    "StoreMix",
    "StudentMask",
    "StudentTokens",
    "WeighedRows",
    "accumulation_steps",
    "align_tokens",
    "check_budget",
    "check_weighed_fields",
    "checked_weights",
    "collate",
    "collate_spans",
    "fields_to_read",
    "keeps_examples_apart",
    "label_nll",
    "learnable_gain",
    "learnable_rows",
    "many_epochs",
    "mapped_shares",
    "mask_of",
    "own_vocabulary",
    "reachable_rows",
    "read_fractions",
    "read_mask",
    "read_spans",
    "row_scores",
    "shares",
    "span_examples",
    "span_fields",
    "stream_positions",
    "teacher_rows",
    "write_mask",
]
