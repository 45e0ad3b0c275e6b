"""From a store to micro-batches: order, mixture, packing, prefetch, random masks."""

from caskd.train.data.batches import (
    BatchReader,
    MicroBatch,
    StepBatch,
    collate,
    fields_to_read,
    teacher_rows,
)
from caskd.train.data.micro_steps import Cut, accumulation_steps, check_budget, longest_first
from caskd.train.data.mixture import MixedOrder, shares
from caskd.train.data.order import stream_positions
from caskd.train.data.packing import keeps_examples_apart
from caskd.train.data.prefetch import ReadAhead
from caskd.train.data.random_mask import RandomMask, read_fractions
from caskd.train.data.store_mix import StoreMix

__all__ = [
    "BatchReader",
    "Cut",
    "MicroBatch",
    "MixedOrder",
    "RandomMask",
    "ReadAhead",
    "StepBatch",
    "StoreMix",
    "accumulation_steps",
    "check_budget",
    "collate",
    "fields_to_read",
    "keeps_examples_apart",
    "longest_first",
    "read_fractions",
    "shares",
    "stream_positions",
    "teacher_rows",
]
