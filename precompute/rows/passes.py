"""The passes over the vocabulary that the row fields need: here in plain torch.

`triton_passes` does the same in two reads of the head's own product, in its dtype. Torch first
writes it in float32, and then reads or writes that a dozen times.

Legend: N rows of a tile, V vocabulary, k cells kept per row.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

BLOCK = 32  # neighbouring ids that share a maximum


@dataclass(frozen=True)
class Rest:
    """What a row holds besides its k cells."""

    outside: Tensor
    """[N] float32, the sum of exp(logit - highest) over all other cells. Not 1 minus a sum: it
    keeps its digits when it is 1e-8."""
    label_rank: Tensor
    """[N] int64, #{v: z_v > z_y} + #{v < y: z_v = z_y}."""


class Passes(Protocol):
    """Reads every logit of a tile."""

    def prepared(self, logits: Tensor) -> Tensor:
        """The logits [N, V] in a dtype that the passes take."""

    def maxima(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Maxima of blocks of neighbouring ids, and which rows are finite.

        Returns:
            float32 [N, ceil(V / BLOCK)], of which the last block may be short and rows that are not
            finite have any; and bool [N].
        """

    def rest(
        self, logits: Tensor, values: Tensor, ids: Tensor, label_logit: Tensor, labels: Tensor
    ) -> Rest:
        """What is outside the k cells, and the ranks of the labels.

        Args:
            logits: [N, V].
            values: [N, k] float32, descending; equal ones with ascending ids.
            ids: [N, k] int64.
            label_logit: [N] float32.
            labels: [N] int64.
        """


@dataclass(frozen=True)
class TorchPasses:
    """On any device, without a compiler."""

    may_wait: bool = True
    """Whether the host may wait for results, as it does on a CPU anyway."""

    def prepared(self, logits: Tensor) -> Tensor:
        """The logits [N, V] in float32."""
        return logits.float()

    def maxima(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Maxima of the blocks [N, blocks], and whether each row is finite [N]: NaN and Inf show in
        the maxima or in the minimum."""
        num_rows, num_ids = logits.shape
        num_whole = num_ids // BLOCK
        whole, rest = logits[:, : num_whole * BLOCK], logits[:, num_whole * BLOCK :]
        maxima = whole.view(num_rows, num_whole, BLOCK).amax(dim=2)
        if rest.numel():
            maxima = torch.cat([maxima, rest.amax(dim=1, keepdim=True)], dim=1)
        low, high = logits.amin(dim=1), maxima.amax(dim=1)
        return maxima, torch.isfinite(low) & torch.isfinite(high)

    def rest(
        self, logits: Tensor, values: Tensor, ids: Tensor, label_logit: Tensor, labels: Tensor
    ) -> Rest:
        """A label among the k cells has its position there as rank; others are counted over V.

        To pick those others, the host waits.
        """
        weights = (logits - values[:, :1]).exp_().scatter_(1, ids, 0.0)
        match = ids == labels[:, None]
        ranks = match.to(torch.int64).argmax(dim=1)
        if self.may_wait:
            others = (~match.any(dim=1)).nonzero().squeeze(1)
            if len(others):
                ranks[others] = _counted_ranks(logits[others], label_logit[others], labels[others])
        else:
            ranks = _counted_ranks(logits, label_logit, labels)
        return Rest(weights.sum(dim=1), ranks)


def _counted_ranks(logits: Tensor, label_logit: Tensor, labels: Tensor) -> Tensor:
    own, label = label_logit[:, None], labels[:, None].int()
    numbers = torch.arange(logits.shape[1], dtype=torch.int32, device=logits.device)
    earlier = (logits > own) | ((logits == own) & (numbers < label))
    return earlier.sum(dim=1, dtype=torch.int32).to(torch.int64)
