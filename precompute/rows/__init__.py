"""The row fields of a store from logits: top-k or sampled targets."""

from caskd.precompute.rows.log_probs import log_prob_fields
from caskd.precompute.rows.targets import Numbers, Targets, targets_of
from caskd.precompute.rows.topk import Columns, Fields, filler_rows

__all__ = [
    "Columns",
    "Fields",
    "Numbers",
    "Targets",
    "filler_rows",
    "log_prob_fields",
    "targets_of",
]
