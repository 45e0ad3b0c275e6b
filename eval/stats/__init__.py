"""Bootstrap, intervals over seeds, McNemar's test."""

from caskd.eval.stats.bootstrap import (
    NUM_DRAWS,
    SEED,
    Difference,
    Series,
    area_draws,
    area_influence,
    arm_difference,
    interval,
    mean_draws,
)
from caskd.eval.stats.intervals import McNemar, mcnemar
from caskd.eval.stats.task_replicates import pooled_draws, task_draws

__all__ = [
    "NUM_DRAWS",
    "SEED",
    "Difference",
    "McNemar",
    "Series",
    "area_draws",
    "area_influence",
    "arm_difference",
    "interval",
    "mcnemar",
    "mean_draws",
    "pooled_draws",
    "task_draws",
]
