"""The loss written like its formula, on whole logits: the reference for the fused loss.

Dimension letters: N rows, k stored cells of a teacher row, V student vocabulary, H hidden width.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from caskd.train.loss.targets import StudentRows, Targets, sum_rows, teacher_targets
from caskd.train.loss.types import Head, LossRows, LossSums, LossTerms


def dense_loss(
    hidden: Tensor, head: Head, rows: LossRows, terms: LossTerms, dtype: torch.dtype
) -> LossSums:
    """Sums over `rows` by plain autograd; keeps several tensors [N, V].

    Args:
        hidden: [N, H], one line for each of `rows`.
        head: the student's output head.
        rows: labels, teacher fields and weights.
        terms: options of the loss.
        dtype: of the product with the head; what follows is in float32, or in float64 for float64.
    """
    logits = dense_logits(hidden, head, dtype)
    log_odds, num_columns = None, logits.shape[1]
    if terms.delegation is not None:
        call_logit = logits[:, terms.delegation.column]
        column = torch.tensor([terms.delegation.column], device=logits.device)
        logits = logits.index_fill(1, column, -torch.inf)
        log_odds = call_logit - logits.logsumexp(1)
        num_columns -= 1
    logprobs = logits.log_softmax(1)
    targets = None
    cross_entropy = topk = None
    if rows.teacher is not None and rows.teacher.has_distribution:
        targets = teacher_targets(rows.teacher, terms.tail, num_columns, logits.dtype)
        cross_entropy = _cross_entropy(logprobs, targets)
        topk = logprobs.detach().gather(1, targets.ids).exp()
    student = StudentRows(
        argmax=logits.detach().argmax(1),
        label_nll=-logprobs.gather(1, rows.labels[:, None]).squeeze(1),
        teacher_cross_entropy=cross_entropy,
        confidence=logprobs.detach().amax(1),
        log_odds=log_odds,
        topk=topk,
        uniform_kl=None if terms.confidence is None else _uniform_kl(logprobs),
    )
    return sum_rows(student, rows, targets, terms)[0]


def dense_logits(hidden: Tensor, head: Head, dtype: torch.dtype) -> Tensor:
    """Logits [N, V] in float32 or float64; a bfloat16 product is rounded to bfloat16 first."""
    logits = F.linear(hidden.to(dtype), head.weight.to(dtype))
    logits = logits.to(torch.promote_types(dtype, torch.float32))
    return head.logits(logits)


def _uniform_kl(logprobs: Tensor) -> Tensor:
    """[N] KL to the uniform distribution over V, from logprobs [N, V]."""
    finite = logprobs.masked_fill(logprobs == -torch.inf, 0)
    return math.log(logprobs.shape[1]) + (logprobs.exp() * finite).sum(1)


def _cross_entropy(logprobs: Tensor, targets: Targets) -> Tensor:
    """[N] cross-entropy of the sparse targets and their tail bucket, from logprobs [N, V]."""
    cells = -(targets.mass * logprobs.gather(1, targets.ids)).sum(1)
    outside = logprobs.scatter(1, targets.ids, -torch.inf)
    has_tail = targets.tail > 0
    # A row without a tail keeps all log-probabilities: logsumexp of an empty set has no gradient.
    outside = torch.where(has_tail[:, None], outside, logprobs).logsumexp(1)
    return cells - torch.where(has_tail, targets.tail * outside, 0)
