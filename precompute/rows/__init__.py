"""The row fields of a store from logits: top-k or sampled targets."""

from caskd.precompute.rows.log_probs import log_prob_fields, response_fields
from caskd.precompute.rows.packed import Piece, assembled, pack
from caskd.precompute.rows.sampling import filler_draws
from caskd.precompute.rows.targets import (
    Numbers,
    Reduction,
    Targets,
    TopKTargets,
    targets_from,
    targets_of,
)
from caskd.precompute.rows.topk import Columns, Fields, filler_rows

__all__ = [
    "Columns",
    "Fields",
    "Numbers",
    "Piece",
    "Reduction",
    "Targets",
    "TopKTargets",
    "assembled",
    "filler_draws",
    "filler_rows",
    "log_prob_fields",
    "pack",
    "response_fields",
    "targets_from",
    "targets_of",
]
