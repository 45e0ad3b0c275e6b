"""The row fields of a store from logits: top-k or sampled targets."""

from caskd.precompute.rows.targets import Numbers, Targets, targets_of
from caskd.precompute.rows.topk import Columns, Fields

__all__ = [
    "Columns",
    "Fields",
    "Numbers",
    "Targets",
    "targets_of",
]
