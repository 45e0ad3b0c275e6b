"""The loss of the CALL column, which no other row's normaliser contains.

With z the logits, c the CALL column, lse over the vocabulary without c, and s = z_c - lse:

    delegated row (LaCy, arXiv 2602.12005)     -log softmax_{V+c}(c)    = softplus(-s)
    any other row                              the objective over V alone

`l2d` is learning to defer (Mozannar and Sontag 2020, alpha = 1): with T = 1 where the teacher's
argmax is the label, every row has -log softmax_{V+c}(y) - T log softmax_{V+c}(c)
= -log softmax_V(y) + softplus(s) + T softplus(-s).

`ova` is one-vs-all (Verma and Nalisnick 2022) for the CALL column, with the softmax of a language
model for the vocabulary: -log softmax_V(y) + (1 - T) softplus(s) + T softplus(-s). So sigmoid(s) is
the probability that the teacher is right. In the paper every class has such a logistic loss.

Legend: N rows.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from caskd.models.decoding import call_score
from caskd.train.delegation.choice import Threshold
from caskd.train.objectives import LEARNS_TO_DEFER, DelegateRule


@dataclass(frozen=True)
class Delegation:
    """The CALL column in one step."""

    rule: DelegateRule
    column: int
    """Of the CALL token among the head's logits."""
    threshold: Threshold
    """Which rows are delegated; not read by rules without a share, which have no such rows."""

    def defers(self, log_odds: Tensor, confidence: Tensor) -> Tensor:
        """Where [N] a student that learns to defer would ask the teacher, up to ties.

        Args:
            log_odds: [N] z_c - lse.
            confidence: [N] log-probability of the student's likeliest token.
        """
        return call_score(self.rule, log_odds, confidence) >= 0


@dataclass(frozen=True, eq=False)
class CallTerms:
    """Losses of rows that train the CALL column, and their derivatives.

    With q the student's softmax over the vocabulary without the column, a row's gradient is
    `on_all` q - `on_label` [label] over the vocabulary, and `on_call` at the column.
    """

    own: Tensor
    """[N] bool: rows with this loss in place of the objective's."""
    loss: Tensor
    """[N]."""
    on_all: Tensor
    """[N]."""
    on_label: Tensor
    """[N]."""
    on_call: Tensor
    """[N] 0 where the row is not its own."""

    def take(self, index: Tensor) -> "CallTerms":
        """The rows at `index`."""
        columns = (self.own, self.loss, self.on_all, self.on_label, self.on_call)
        return CallTerms(*(column[index] for column in columns))


def call_terms(
    rule: DelegateRule, log_odds: Tensor, label_nll: Tensor, marked: Tensor
) -> CallTerms:
    """Losses and derivatives of the rows that train the CALL column.

    Args:
        rule: of the choice.
        log_odds: [N] z_c - lse.
        label_nll: [N] of the label, over the vocabulary without the column.
        marked: [N] bool: delegated rows; for l2d and ova, rows whose teacher is right.
    """
    call = log_odds.detach().sigmoid()
    other = (-log_odds.detach()).sigmoid()
    if rule in LEARNS_TO_DEFER:
        right = marked.to(log_odds.dtype)
        unless = torch.ones_like(right) if rule == "l2d" else 1 - right  # factor of softplus(s)
        return CallTerms(
            own=torch.ones_like(marked),
            loss=label_nll - unless * logsigmoid(-log_odds) - right * logsigmoid(log_odds),
            on_all=1 - unless * call + right * other,
            on_label=torch.ones_like(right),
            on_call=unless * call - right * other,
        )
    return CallTerms(
        own=marked,
        loss=-logsigmoid(log_odds),
        on_all=other,
        on_label=torch.zeros_like(other),
        on_call=torch.where(marked, -other, 0),
    )
