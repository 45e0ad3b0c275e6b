"""Bootstrap replicates, intervals over seeds, McNemar's test."""

from caskd.eval.stats.bootstrap import (
    NUM_REPLICATES,
    SEED,
    Difference,
    Series,
    area_influence,
    area_replicates,
    arm_difference,
    interval,
    mean_replicates,
)
from caskd.eval.stats.intervals import McNemar, mcnemar
from caskd.eval.stats.task_replicates import pooled_replicates, replicates_by_task

__all__ = [
    "NUM_REPLICATES",
    "SEED",
    "Difference",
    "McNemar",
    "Series",
    "area_influence",
    "area_replicates",
    "arm_difference",
    "interval",
    "mcnemar",
    "mean_replicates",
    "pooled_replicates",
    "replicates_by_task",
]
