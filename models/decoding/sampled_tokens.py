"""Sampled form of a token cascade's rules: draft from one model, accept, or draw from the rest.

Speculative sampling (arXiv 2211.17192) toward any target (arXiv 2405.19261): a token x of the
drafting model is accepted with probability min(1, target(x) / draft(x)), else one is drawn from the
positive part of target - draft. Tokens then have the target distribution.

Legend: N positions, V vocabulary.
"""

import hashlib

import torch
from torch import Tensor

from caskd.models.decoding.token_rules import TokenRule


def target_distribution(
    rule: TokenRule, setting: float, q: Tensor, p: Tensor, scores: Tensor | None = None
) -> Tensor:
    """Distribution [N, V] of the emitted token.

    Args:
        rule: the rule.
        setting: its number; any for a rule without one.
        q: probabilities [N, V] of the small model.
        p: probabilities [N, V] of the large model.
        scores: [N] of `TokenRule.score`, for rules that read one.
    """
    proposer, other = (q, p) if rule.proposer == "small" else (p, q)
    read = q if scores is None else scores[:, None]
    refused = rule.refused(read, p, setting).expand_as(q).to(q.dtype)
    return proposer * (1.0 - refused) + other * (proposer * refused).sum(dim=-1, keepdim=True)


def draw(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """Tokens [N] by inversion: the first whose cumulative probability exceeds the uniform number.

    Args:
        probabilities: [N, V], of any positive sum.
        uniform: [N] numbers in [0, 1).
    """
    cumulative = probabilities.cumsum(dim=-1)
    wanted = uniform[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, wanted, right=True)[:, 0].clamp(
        max=probabilities.shape[-1] - 1
    )


def accept_or_redraw(
    drafted: Tensor, q: Tensor, target: Tensor, uniforms: Tensor
) -> tuple[Tensor, Tensor]:
    """Whether each draft is accepted [N], and the emitted tokens [N].

    Args:
        drafted: [N] tokens drawn from q.
        q: probabilities [N, V] that the drafts were drawn from, in the same precision.
        target: probabilities [N, V] of the target.
        uniforms: [N, 2] numbers in [0, 1), independent of the drafts and of each other.
    """
    index = drafted[:, None]
    ratio = (target.gather(-1, index) / q.gather(-1, index))[:, 0]
    accepted = uniforms[:, 0] < ratio
    residual = (target - q).clamp(min=0.0)
    # Where q equals the target, nothing is left and nothing is rejected.
    residual = torch.where(residual.sum(dim=-1, keepdim=True) > 0.0, residual, target)
    return accepted, torch.where(accepted, drafted, draw(residual, uniforms[:, 1]))


def uniforms_at(seed: int, request: str, position: int) -> tuple[float, float, float]:
    """Three numbers in [0, 1) for one position: of the draft, of its acceptance, of a redraw.

    They depend on nothing else, so that a text depends neither on gamma nor on a batch.
    """
    key = f"{seed}\n{position}\n{request}".encode()
    value = hashlib.sha256(key).digest()
    first, second, third = (int.from_bytes(value[i : i + 8], "big") >> 11 for i in (0, 8, 16))
    return first / 2**53, second / 2**53, third / 2**53
