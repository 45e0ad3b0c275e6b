"""The CALL token of a student that asks for the large model: its log-odds, and the score of a row.

Legend: N rows, V columns of the student's head.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def without_call(logits: Tensor, call_id: int) -> tuple[Tensor, Tensor]:
    """Logits [N, V] with -inf for the CALL token, and the token's log-odds [N].

    The log-odds are its logit less the log-sum-exp of all others.
    """
    at_call = logits[:, call_id].clone()
    others = logits.index_fill(1, torch.tensor([call_id], device=logits.device), -torch.inf)
    return others, at_call - others.logsumexp(dim=-1)


def call_score(rule: str | None, log_odds: Tensor, confidence: Tensor) -> Tensor:
    """Score [N] in nats by which a student asks for the large model, the highest first.

    exp(s) of a student of `l2d` (Mozannar and Sontag 2020), and sigmoid(s) of one of `ova` (Verma
    and Nalisnick 2022), is the probability that the teacher is right; the student itself is right
    with max p. Their score is the log of the ratio: from 0 on, the teacher is more likely right.
    Students of all other rules have s.

    Args:
        rule: of `caskd train --delegate`; None where it is unknown.
        log_odds: [N] s.
        confidence: [N] log-probability of the student's likeliest token without the CALL token.
    """
    if rule == "l2d":
        return log_odds - confidence
    if rule == "ova":
        return logsigmoid(log_odds) - confidence
    return log_odds
