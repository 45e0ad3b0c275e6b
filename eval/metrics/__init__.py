"""Answer metrics: the quality of one answer against its references."""

from caskd.eval.metrics.metrics import NORMALIZE, bleu_scorer, find_metric

__all__ = [
    "NORMALIZE",
    "bleu_scorer",
    "find_metric",
]
