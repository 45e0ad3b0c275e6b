"""Rules of a token cascade: at which tokens the large model's choice replaces the small model's.

Sources: speculative cascades (arXiv 2405.19261), reverse speculative decoding (arXiv 2509.22230),
LaCy (arXiv 2602.12005), R2R (arXiv 2505.21600).
A rule marks tokens of the proposing model that are refused. The target distribution of every rule
is `proposer * (1 - refused) + other * (mass of the proposer on refused tokens)`, and its greedy
form emits the proposer's likeliest token, or the other model's where that one is refused.

Legend: N positions, V vocabulary, q [N, V] probabilities of the small model, p [N, V] those of the
large model.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Setting = Literal["alpha", "threshold", "p_th", "call_threshold"]
Refused = Callable[[Tensor, Tensor, float], Tensor]
"""From q, p and the setting to bool [N, V], or [N, 1] where all tokens of a position are alike."""


@dataclass(frozen=True)
class TokenRule:
    """One rule."""

    refused: Refused
    setting: Setting | None = None
    """The number that the rule reads; None for a rule without one."""
    reads_large: bool = True
    """Whether the rule reads p; if not, `refused` is also called with q in its place."""
    proposer: Literal["small", "large"] = "small"
    score: Literal["call", "router"] | None = None
    """What `refused` gets [N, 1] in place of q: `call_score` of the small model, or a router's
    probability that the large model should choose."""


def _always(q: Tensor, _p: Tensor, _setting: float) -> Tensor:
    return torch.ones(len(q), 1, dtype=torch.bool, device=q.device)


def _chow(q: Tensor, _p: Tensor, alpha: float) -> Tensor:
    return _most(q) < 1.0 - alpha


def _diff(q: Tensor, p: Tensor, alpha: float) -> Tensor:
    return _most(q) < _most(p) - alpha


def _opt(q: Tensor, p: Tensor, alpha: float) -> Tensor:
    return _most(q) < _most(p) - alpha * total_variation(q, p)[:, None]


def _token_v1(q: Tensor, p: Tensor, alpha: float) -> Tensor:
    return q < _most(p) - alpha


def _token_v2(_q: Tensor, p: Tensor, alpha: float) -> Tensor:
    return p < _most(p) - alpha


def _token_v3(_q: Tensor, p: Tensor, alpha: float) -> Tensor:
    return p < (1.0 - alpha) * _most(p)


def _entropy(q: Tensor, _p: Tensor, threshold: float) -> Tensor:
    entropy: Tensor = torch.special.entr(q).sum(dim=-1, keepdim=True)
    return entropy >= threshold


def _margin(q: Tensor, _p: Tensor, threshold: float) -> Tensor:
    first, second = q.topk(2, dim=-1).values.log().unbind(dim=-1)
    return (first - second <= threshold)[:, None]


def _unreachable(q: Tensor, _p: Tensor, p_th: float) -> Tensor:
    return q < p_th


def _reached(scores: Tensor, _p: Tensor, threshold: float) -> Tensor:
    return scores >= threshold


TOKEN_RULES: Mapping[str, TokenRule] = {
    "spec": TokenRule(_always),
    "chow": TokenRule(_chow, "alpha", reads_large=False),
    "diff": TokenRule(_diff, "alpha"),
    "opt": TokenRule(_opt, "alpha"),
    "token-v1": TokenRule(_token_v1, "alpha"),
    "token-v2": TokenRule(_token_v2, "alpha"),
    "token-v3": TokenRule(_token_v3, "alpha"),
    "entropy": TokenRule(_entropy, "threshold", reads_large=False),
    "margin": TokenRule(_margin, "threshold", reads_large=False),
    "call": TokenRule(_reached, "call_threshold", reads_large=False, score="call"),
    "router": TokenRule(_reached, "threshold", reads_large=False, score="router"),
    "rsd": TokenRule(_unreachable, "p_th", proposer="large"),
}
"""By the names of `--token-rule`."""


def large_decides(
    rule: TokenRule, setting: float, q: Tensor, p: Tensor, scores: Tensor | None = None
) -> Tensor:
    """Whether the greedy form emits the large model's likeliest token: bool [N].

    Args:
        rule: the rule.
        setting: its number; any for a rule without one.
        q: probabilities [N, V] of the small model.
        p: probabilities [N, V] of the large model; not read by rules of the small model alone.
        scores: [N] of `TokenRule.score`, for rules that read one.
    """
    if rule.score is not None:
        assert scores is not None
        return rule.refused(scores[:, None], p, setting)[:, 0]
    proposed = (q if rule.proposer == "small" else p).argmax(dim=-1, keepdim=True)
    refused = rule.refused(q, p, setting).expand_as(q).gather(-1, proposed)[:, 0]
    return refused if rule.proposer == "small" else ~refused


def total_variation(q: Tensor, p: Tensor) -> Tensor:
    """Total variation distance [N]: half the sum of absolute differences."""
    return 0.5 * (q - p).abs().sum(dim=-1)


def _most(probabilities: Tensor) -> Tensor:
    return probabilities.max(dim=-1, keepdim=True).values
