"""From logits to the row fields of a store: top-k or sampled targets."""

from caskd.precompute.rows.targets import Numbers, RowRule, row_rule
from caskd.precompute.rows.topk import Fields

__all__ = [
    "Fields",
    "Numbers",
    "RowRule",
    "row_rule",
]
