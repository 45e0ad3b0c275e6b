"""What a study measures: cascades, contrasts, operating points, samples."""

from caskd.eval.study.analysis import Analysis, analyze
from caskd.eval.study.chain import RoutingResult
from caskd.eval.study.compare import FIXED_RATE
from caskd.eval.study.contrast import (
    AUDC,
    COST,
    GAIN,
    MIN_TASK_EXAMPLES,
    RATE,
    SMALL,
    WITHIN_TASK,
    Contrast,
    FigureReplicates,
    contrasts,
    seed_warnings,
)
from caskd.eval.study.decision import CostLine, Decision, estimate_text, number, sentence
from caskd.eval.study.guarantee import DELTA, Guarantee
from caskd.eval.study.measure import ALL_TASKS, NO_TASK, CascadeResult
from caskd.eval.study.operating_point import OperatingPoint
from caskd.eval.study.token_cascades import TokenCascadePoint

__all__ = [
    "ALL_TASKS",
    "AUDC",
    "COST",
    "DELTA",
    "FIXED_RATE",
    "GAIN",
    "MIN_TASK_EXAMPLES",
    "NO_TASK",
    "RATE",
    "SMALL",
    "WITHIN_TASK",
    "Analysis",
    "CascadeResult",
    "Contrast",
    "CostLine",
    "Decision",
    "FigureReplicates",
    "Guarantee",
    "OperatingPoint",
    "RoutingResult",
    "TokenCascadePoint",
    "analyze",
    "contrasts",
    "estimate_text",
    "number",
    "seed_warnings",
    "sentence",
]
