"""The cascade-aware loss: mask, dense reference, fused torch and Triton kernels."""

from caskd.train.loss.api import cascade_aware_loss, student_right, tile_bytes
from caskd.train.loss.eval_stats import ROW_STATS, best_step, eval_metrics, row_stats, sum_row_stats
from caskd.train.loss.mask import IGNORE_LABEL, keep_mask
from caskd.train.loss.span_loss import MappedRows, TeacherSpans, span_loss
from caskd.train.loss.types import Head, LossRows, LossSums, TeacherRows

__all__ = [
    "IGNORE_LABEL",
    "ROW_STATS",
    "Head",
    "LossRows",
    "LossSums",
    "MappedRows",
    "TeacherRows",
    "TeacherSpans",
    "best_step",
    "cascade_aware_loss",
    "eval_metrics",
    "keep_mask",
    "row_stats",
    "span_loss",
    "student_right",
    "sum_row_stats",
    "tile_bytes",
]
