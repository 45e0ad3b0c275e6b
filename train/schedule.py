"""The learning rate, a pure function of the step: there is no scheduler to save or to lose."""

import math

FINAL_FRACTION = 0.1


def lr_at(step: int, *, peak: float, steps: int, warmup_steps: int) -> float:
    """Learning rate of one optimizer step: linear warm-up, then a cosine to a tenth of the peak.

    Args:
        step: 0 is the first step, `steps` - 1 the last.
        peak: reached at step `warmup_steps` - 1, or at step 0 without warm-up.
        steps: of the whole run.
        warmup_steps: at most `steps`.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    first = max(warmup_steps - 1, 0)
    done = (step - first) / max(steps - 1 - first, 1)
    cosine = (1 + math.cos(math.pi * min(done, 1.0))) / 2
    return peak * (FINAL_FRACTION + (1 - FINAL_FRACTION) * cosine)
