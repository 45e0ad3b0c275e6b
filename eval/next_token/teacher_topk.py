"""What the teacher's stored top-k tells of a student's distribution and of its choice.

Legend: n rows, k stored tokens, V the student's own columns.
"""

import numpy as np
import torch
from torch import Tensor

from caskd.store import StoreBatch


def teacher_kept(batch: StoreBatch) -> tuple[Tensor, Tensor]:
    """The teacher's stored tokens [N, k] and their probabilities, 0 behind the last of a row."""
    logits = batch.column("topk_logits").astype(np.float64)
    stored = np.arange(logits.shape[1]) < batch.column("num_kept")[:, None]
    totals = batch.column("logsumexp").astype(np.float64)[:, None]
    kept = np.exp(np.where(stored, logits - totals, -np.inf))
    ids = np.where(stored, batch.column("topk_ids"), 0).astype(np.int64)
    return torch.from_numpy(ids), torch.from_numpy(kept)


def choice_ratio(choices: Tensor, ids: Tensor, kept: Tensor) -> Tensor:
    """The teacher's probability of each choice [n] over its largest: [n], 0 outside the top-k.

    Args:
        choices: [n] tokens.
        ids: [n, k] stored tokens.
        kept: [n, k] their probabilities; 0 where fewer are stored.
    """
    found = torch.where(ids == choices[:, None], kept, 0.0).amax(dim=-1)
    return found / kept.amax(dim=-1).clamp(min=1e-300)


def acceptance_bounds(logits: Tensor, ids: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Least and largest acceptance [n] of a draft model by a teacher of which a top-k is stored.

    With h half the sum of |p - q| over the stored tokens and P, Q the masses of both models on
    them, the distance lies between h + |P - Q| / 2 and h + ((1 - P) + (1 - Q)) / 2: outside of
    them, the two agree as far as their masses allow, or share no token.

    Args:
        logits: [n, V] of the draft model.
        ids: [n, k] stored tokens; any where `kept` is 0.
        kept: [n, k] the teacher's probabilities p of them; 0 where fewer are stored.
    """
    log_total = logits.logsumexp(dim=-1, keepdim=True)
    drafted = (logits.gather(-1, ids) - log_total).exp().double() * (kept > 0)
    inside = 0.5 * (kept - drafted).abs().sum(dim=-1)
    teacher_mass, draft_mass = kept.sum(dim=-1).clamp(max=1.0), drafted.sum(dim=-1).clamp(max=1.0)
    least = inside + 0.5 * (teacher_mass - draft_mass).abs()
    most = inside + 0.5 * ((1.0 - teacher_mass) + (1.0 - draft_mass))
    return (1.0 - most).clamp(0.0, 1.0), (1.0 - least).clamp(0.0, 1.0)
