"""What a study measures: runs, contrasts, operating points, samples."""

from caskd.eval.study.analysis import Findings, find
from caskd.eval.study.chain import ChainMeasured
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
    Drawn,
    contrasts,
)
from caskd.eval.study.measure import ALL_TASKS, NO_TASK, RATES, Measured, figures
from caskd.eval.study.operating_point import OperatingPoint

__all__ = [
    "ALL_TASKS",
    "AUDC",
    "COST",
    "FIXED_RATE",
    "GAIN",
    "MIN_TASK_EXAMPLES",
    "NO_TASK",
    "RATE",
    "RATES",
    "SMALL",
    "WITHIN_TASK",
    "ChainMeasured",
    "Contrast",
    "Drawn",
    "Findings",
    "Measured",
    "OperatingPoint",
    "contrasts",
    "figures",
    "find",
]
