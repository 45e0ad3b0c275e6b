"""The cascade-aware loss: objectives, dense reference, fused torch and Triton kernels."""

from caskd.train.loss.api import cascade_aware_loss, keep_mask, tile_bytes
from caskd.train.loss.measures import MEASURES, best_step, figures_of, row_measures, tally_measures
from caskd.train.loss.objectives import (
    IGNORE_LABEL,
    OBJECTIVES,
    Objective,
    Tail,
    resolve_objective,
    resolve_tail,
    resolve_unmasked,
)
from caskd.train.loss.types import Head, LossRows, LossSums, TeacherRows

__all__ = [
    "IGNORE_LABEL",
    "MEASURES",
    "OBJECTIVES",
    "Head",
    "LossRows",
    "LossSums",
    "Objective",
    "Tail",
    "TeacherRows",
    "best_step",
    "cascade_aware_loss",
    "figures_of",
    "keep_mask",
    "resolve_objective",
    "resolve_tail",
    "resolve_unmasked",
    "row_measures",
    "tally_measures",
    "tile_bytes",
]
