"""From stores to micro-batches: order, mixture, packing, prefetch, random masks."""

from caskd.train.data.batches import (
    BatchReader,
    MicroBatch,
    StepBatch,
    collate,
    fields_to_read,
    teacher_rows,
)
from caskd.train.data.epochs import many_epochs
from caskd.train.data.micro_steps import MicroBatchSplit, accumulation_steps, check_budget
from caskd.train.data.mixture import MixedOrder, shares
from caskd.train.data.order import stream_positions
from caskd.train.data.packing import keeps_examples_apart
from caskd.train.data.prefetch import Prefetcher
from caskd.train.data.random_mask import RandomMask, read_fractions
from caskd.train.data.store_mix import StoreMix

__all__ = [
    "BatchReader",
    "MicroBatch",
    "MicroBatchSplit",
    "MixedOrder",
    "Prefetcher",
    "RandomMask",
    "StepBatch",
    "StoreMix",
    "accumulation_steps",
    "check_budget",
    "collate",
    "fields_to_read",
    "keeps_examples_apart",
    "many_epochs",
    "read_fractions",
    "shares",
    "stream_positions",
    "teacher_rows",
]
