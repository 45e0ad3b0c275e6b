"""Other implementations of the losses that bench_loss.py times, and their requirements.

Dimension letters: N rows, k stored cells, V vocabulary, H hidden width.
"""

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from caskd.train.loss import TeacherRows

Rival = Callable[[Tensor, Tensor, Tensor, TeacherRows], Tensor]
CHUNK_ROWS = {"cpu": 256, "cuda": 1024}
"""Of torch's own chunked loss and of chunk + checkpoint: torch's default is far slower on a CPU."""


def dense_cross_entropy(h: Tensor, head: Tensor, labels: Tensor, teacher: TeacherRows) -> Tensor:
    """Plain cross-entropy on whole logits."""
    return F.cross_entropy((h @ head.T).float(), labels, reduction="sum")


@cache
def _compiled() -> Rival:
    compiled: Rival = torch.compile(dense_cross_entropy, dynamic=False)
    return compiled


def compiled_cross_entropy(h: Tensor, head: Tensor, labels: Tensor, teacher: TeacherRows) -> Tensor:
    """Plain cross-entropy through torch's compiler, which fuses what is around the product."""
    return _compiled()(h, head, labels, teacher)


def chunked_cross_entropy(h: Tensor, head: Tensor, labels: Tensor, teacher: TeacherRows) -> Tensor:
    """torch's own fused cross-entropy."""
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=CHUNK_ROWS[h.device.type])
    return F.linear_cross_entropy(h, head, labels, reduction="sum", options=options)


def liger_cross_entropy(h: Tensor, head: Tensor, labels: Tensor, teacher: TeacherRows) -> Tensor:
    """liger-kernel's fused cross-entropy."""
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    loss: Tensor = liger_fused_linear_cross_entropy(h, head, labels, reduction="sum")
    return loss


def apple_cross_entropy(h: Tensor, head: Tensor, labels: Tensor, teacher: TeacherRows) -> Tensor:
    """cut-cross-entropy with its default settings, which skip small gradients."""
    from cut_cross_entropy import linear_cross_entropy

    loss: Tensor = linear_cross_entropy(h, head, labels, reduction="sum")
    return loss


def apple_cross_entropy_exact(
    h: Tensor, head: Tensor, labels: Tensor, teacher: TeacherRows
) -> Tensor:
    """cut-cross-entropy with every gradient."""
    from cut_cross_entropy import LinearCrossEntropyImpl, linear_cross_entropy

    has_preset = hasattr(LinearCrossEntropyImpl, "CCE_EXACT")  # newer than what is on PyPI
    every = {"impl": "cce_exact"} if has_preset else {"filter_eps": None}
    loss: Tensor = linear_cross_entropy(h, head, labels, reduction="sum", **every)
    return loss


def naive_gather(h: Tensor, head: Tensor, labels: Tensor, teacher: TeacherRows) -> Tensor:
    """Half cross-entropy, half distillation of the top-k alone, on whole logits."""
    logprobs = (h @ head.T).float().log_softmax(1)
    cells = _mass(teacher) * logprobs.gather(1, teacher.topk_ids)
    return -0.5 * logprobs.gather(1, labels[:, None]).sum() - 0.5 * cells.sum()


def naive_bucket(h: Tensor, head: Tensor, labels: Tensor, teacher: TeacherRows) -> Tensor:
    """Half cross-entropy, half bucketed distillation, in a naive version on whole logits."""
    logprobs = (h @ head.T).float().log_softmax(1)
    cells = (_mass(teacher) * logprobs.gather(1, teacher.topk_ids)).sum()
    outside = logprobs.scatter(1, teacher.topk_ids, -torch.inf).logsumexp(1)
    label = logprobs.gather(1, labels[:, None]).sum()
    return -0.5 * label - 0.5 * (cells + (teacher.tail_mass * outside).sum())


def chunk_and_checkpoint(h: Tensor, head: Tensor, labels: Tensor, teacher: TeacherRows) -> Tensor:
    """The naive bucket in chunks of rows whose logits are made again in the backward."""
    return _in_chunks(naive_bucket, h, head, labels, teacher)


def chunked_plain(h: Tensor, head: Tensor, labels: Tensor, teacher: TeacherRows) -> Tensor:
    """Plain cross-entropy in chunks of rows whose logits are made again in the backward."""
    return _in_chunks(dense_cross_entropy, h, head, labels, teacher)


def _in_chunks(
    loss: Rival, h: Tensor, head: Tensor, labels: Tensor, teacher: TeacherRows
) -> Tensor:
    total = h.new_zeros((), dtype=torch.float32)
    for index in torch.arange(len(h), device=h.device).split(CHUNK_ROWS[h.device.type]):
        part = h[index], head, labels[index], teacher.take(index)
        total = total + checkpoint(loss, *part, use_reentrant=False)
    return total


def _mass(teacher: TeacherRows) -> Tensor:
    """[N, k] probabilities of the cells."""
    return (teacher.topk_logits - teacher.logsumexp[:, None]).exp()


RIVALS: dict[str, Rival] = {
    "dense cross-entropy": dense_cross_entropy,
    "compiled cross-entropy": compiled_cross_entropy,
    "torch chunked cross-entropy": chunked_cross_entropy,
    "chunk + checkpoint cross-entropy": chunked_plain,
    "liger cross-entropy": liger_cross_entropy,
    "cut-cross-entropy": apple_cross_entropy,
    "cut-cross-entropy, exact": apple_cross_entropy_exact,
    "naive gather distillation": naive_gather,
    "naive bucket distillation": naive_bucket,
    "chunk + checkpoint distillation": chunk_and_checkpoint,
}


def why_not(rival: str, device: str) -> str | None:
    """The reason why a rival cannot run here, or None."""
    if rival == "torch chunked cross-entropy" and not hasattr(F, "linear_cross_entropy"):
        return "needs torch 2.13"
    if rival == "compiled cross-entropy" and device == "cpu":
        return "compiled on a GPU only"
    module = {"liger": "liger_kernel", "cut-c": "cut_cross_entropy"}.get(rival[:5])
    if module is None:
        return None
    if device != "cuda":
        return "needs a CUDA device"
    return None if find_spec(module) else f"needs the package {module}"
