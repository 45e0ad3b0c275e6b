"""Answer metrics: the quality of one answer against its references."""

from caskd.eval.metrics.metrics import (
    NORMALIZE,
    bleu_scorer,
    check_references,
    find_metric,
    is_known,
    score_answer,
)

__all__ = [
    "NORMALIZE",
    "bleu_scorer",
    "check_references",
    "find_metric",
    "is_known",
    "score_answer",
]
