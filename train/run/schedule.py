"""Learning rate, mask and label weight as pure functions of the step; no scheduler state."""

import math
from dataclasses import replace

from caskd.train.config import Schedule
from caskd.train.objectives import Objective

FINAL_FRACTION = 0.1
"""Learning rate at the last step of every falling schedule, as a fraction of the peak."""

DECAY_SHARE = 0.2
"""Default share of all steps in which the rate of wsd falls."""


def lr_at(
    step: int,
    *,
    peak: float,
    steps: int,
    warmup_steps: int,
    schedule: Schedule = "cosine",
    decay_steps: int | None = None,
) -> float:
    """Learning rate of one optimizer step: linear warm-up, then the schedule.

    `cosine` and `linear` fall to a tenth of the peak at the last step. `constant` stays at the
    peak. `wsd` (warm-up, stable, decay) stays at the peak and falls linearly in the last steps.

    Args:
        step: 0 is the first step, `steps` - 1 the last.
        peak: reached at step `warmup_steps` - 1, or at step 0 without warm-up.
        steps: of the whole run.
        warmup_steps: at most `steps`.
        decay_steps: of `wsd`; None is a fifth of `steps`.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if schedule == "constant":
        return peak
    top = max(warmup_steps - 1, 0)  # the last step at the peak
    if schedule == "wsd":
        length = round(DECAY_SHARE * steps) if decay_steps is None else decay_steps
        top = max(top, steps - 1 - length)
    done = min(max(step - top, 0) / max(steps - 1 - top, 1), 1.0)
    left = (1 + math.cos(math.pi * done)) / 2 if schedule == "cosine" else 1 - done
    return peak * (FINAL_FRACTION + (1 - FINAL_FRACTION) * left)


def objective_at(
    step: int, *, objective: Objective, steps: int, mask_from_step: int, final_w: float | None
) -> Objective:
    """Mask and label weight of one optimizer step.

    Args:
        step: 0 is the first step, `steps` - 1 the last.
        objective: from `mask_from_step` on, with the label weight of the first step.
        mask_from_step: every row counts in the steps before it.
        final_w: label weight of the last step, reached linearly; None keeps the first weight.
    """
    rule = objective.rule if step >= mask_from_step else "all"
    if final_w is None:
        return replace(objective, rule=rule)
    done = step / max(steps - 1, 1)
    return replace(objective, rule=rule, w=objective.w + (final_w - objective.w) * done)


def widest_read(objective: Objective, final_w: float | None) -> Objective:
    """Among the objectives of all steps, one that reads the most fields of the store."""
    return replace(objective, w=min(objective.w, objective.w if final_w is None else final_w))
