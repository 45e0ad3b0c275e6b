"""What the teacher's stored top-k tells of a student's distribution and of its choice.

Legend: n rows, k stored tokens, V the student's own columns.
"""

import numpy as np
import torch
from torch import Tensor

from caskd.models.decoding import acceptance_bounds
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


def draft_acceptance(logits: Tensor, ids: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """`acceptance_bounds` [n] of a draft model with logits [n, V].

    Args:
        logits: [n, V].
        ids: [n, k] stored tokens; any where `kept` is 0.
        kept: [n, k] the teacher's probabilities of them; 0 where fewer are stored.
    """
    log_total = logits.logsumexp(dim=-1, keepdim=True)
    return acceptance_bounds((logits.gather(-1, ids) - log_total).exp().double(), kept)
