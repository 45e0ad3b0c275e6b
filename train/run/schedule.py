"""What changes with the step, as pure functions of it: there is no scheduler to save or to lose."""

import math

from caskd.train.config import Schedule
from caskd.train.objectives import Objective

FINAL_FRACTION = 0.1
"""Of the peak: the learning rate at the last step of every schedule that falls."""

DECAY_SHARE = 0.2
"""Of all steps: those in which the rate of wsd falls, unless told otherwise."""


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

    `cosine` and `linear` fall to a tenth of the peak at the last step, `constant` stays, and `wsd`
    (warm-up, stable, decay) stays and falls linearly in the last steps.

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
        objective: what applies from `mask_from_step` on, with the label weight of the first step.
        mask_from_step: before it every row counts.
        final_w: label weight of the last step, reached linearly; None keeps the first one's.
    """
    rule = objective.rule if step >= mask_from_step else "all"
    if final_w is None:
        return Objective(rule, objective.w)
    done = step / max(steps - 1, 1)
    return Objective(rule, objective.w + (final_w - objective.w) * done)


def hungriest(objective: Objective, final_w: float | None) -> Objective:
    """Of the objectives of all steps, one that reads most of the store."""
    return Objective(objective.rule, min(objective.w, objective.w if final_w is None else final_w))
