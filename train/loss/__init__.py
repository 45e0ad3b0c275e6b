"""The cascade-aware loss: mask, dense reference, fused torch and Triton kernels."""

from caskd.train.loss.api import cascade_aware_loss
from caskd.train.loss.mask import IGNORE_LABEL, keep_mask
from caskd.train.loss.measures import MEASURES, best_step, figures_of, row_measures, tally_measures
from caskd.train.loss.types import Head, LossRows, LossSums, TeacherRows

__all__ = [
    "IGNORE_LABEL",
    "MEASURES",
    "Head",
    "LossRows",
    "LossSums",
    "TeacherRows",
    "best_step",
    "cascade_aware_loss",
    "figures_of",
    "keep_mask",
    "row_measures",
    "tally_measures",
]
