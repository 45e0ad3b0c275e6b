"""The row fields of a topk store, computed from a tile of logits.

Legend: N rows of a tile, V vocabulary, k cells kept per row, C candidates for the k cells.

torch.topk guarantees no order among equal values, nor which of them it keeps at rank k, and logits
of bfloat16 models tie often. Here the order is always descending logit, then ascending id, on any
device.

The cost must be small compared with the teacher's, so V is read only three times: for the maxima of
blocks, for the minimum (NaN and Inf appear there or in the maxima), and for the exponentials.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from caskd.store.format import FIELD_DTYPES, TOPK

Fields = dict[str, npt.NDArray[Any]]

BLOCK = 32  # neighbouring ids that share a maximum


def filler_rows(num_rows: int, top_k: int) -> Fields:
    """Rows without a teacher: the filler of a shard, and examples with NaN or Inf."""
    rows: Fields = {
        name: np.zeros(
            (num_rows, top_k) if name.startswith("topk_") else num_rows, FIELD_DTYPES[name]
        )
        for name in TOPK.fields
    }
    rows["topk_logits"][:] = -np.inf
    return rows


def row_fields(logits: Tensor, labels: Tensor, *, top_k: int, min_mass: float = 1.0) -> Fields:
    """Row fields of a store from logits.

    Args:
        logits: [N, V] float32, the padding of the embedding already cut off.
        labels: [N] int64, each below V.
        top_k: k, at most V.
        min_mass: keep the shortest prefix of the k cells whose probability reaches this.

    Returns:
        topk_ids uint32 and topk_logits float32 [N, k]; num_kept uint16, logsumexp, label_logit and
        tail_mass float32, argmax and label_rank uint32, all [N]. A row with NaN or Inf anywhere
        has num_kept 0, logits -inf and zeros elsewhere.
    """
    maxima = block_maxima(logits)
    low, high = logits.amin(dim=1), maxima.amax(dim=1)
    values, ids = _topk(logits, maxima, top_k)
    # The sum of the other weights, not 1 minus a sum: it keeps its digits when it is 1e-8.
    weights = (logits - high[:, None]).exp_().scatter_(1, ids, 0.0)
    tile = {
        "topk_ids": ids,
        "topk_logits": values,
        "high": high,
        "outside": weights.sum(dim=1),
        "label_logit": logits.gather(1, labels[:, None]).squeeze(1),
        "label_rank": label_ranks(logits, labels, ids),
        "finite": torch.isfinite(low) & torch.isfinite(high),
    }
    return _stored_fields({name: values.cpu() for name, values in tile.items()}, min_mass)


def block_maxima(logits: Tensor) -> Tensor:
    """Maxima [N, ceil(V / BLOCK)] of blocks of neighbouring ids; the last block may be short."""
    num_rows, num_ids = logits.shape
    num_whole = num_ids // BLOCK
    whole, rest = logits[:, : num_whole * BLOCK], logits[:, num_whole * BLOCK :]
    maxima = whole.view(num_rows, num_whole, BLOCK).amax(dim=2)
    return torch.cat([maxima, rest.amax(dim=1, keepdim=True)], dim=1) if rest.numel() else maxima


def _topk(logits: Tensor, maxima: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest logits [N, k] and their ids, in descending order, ties to the lowest id.

    The first k blocks by (maximum, lowest block) contain all k cells: if another block contained
    one of them, each of these k blocks would contain a cell that ranks before it.
    """
    num_ids, device = logits.shape[1], logits.device
    if maxima.shape[1] <= k:
        ids = torch.arange(num_ids, device=device).expand_as(logits)
    else:
        numbers = torch.arange(maxima.shape[1], device=device)
        blocks = order_keys(maxima, numbers).topk(k, dim=1, sorted=False).indices
        ids = (blocks[:, :, None] * BLOCK + torch.arange(BLOCK, device=device)).flatten(1)
    keys = order_keys(logits.gather(1, ids.clamp(max=num_ids - 1)), ids)  # [N, C]
    keys.masked_fill_(ids >= num_ids, _LOWEST_KEY)  # past the end of a short last block
    ids = ids.gather(1, keys.topk(k, dim=1).indices)
    return logits.gather(1, ids), ids


_LOWEST_KEY = torch.iinfo(torch.int64).min


def order_keys(values: Tensor, ids: Tensor) -> Tensor:
    """int64 keys of float32 values: larger for a larger value and, among ties, for a lower id.

    All keys differ, so topk has no tie to break. The bits of float32 values sort as integers once
    the bits of negative values, except the sign, are flipped. Adding 0 turns -0 into 0.
    """
    bits = (values + 0.0).view(torch.int32)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.to(torch.int64) << 32) - ids


def label_ranks(logits: Tensor, labels: Tensor, ids: Tensor) -> Tensor:
    """#{v: z_v > z_y} + #{v < y: z_v = z_y} [N], for labels outside the top-k too.

    A label in the (ordered) top-k has its position there as rank; only the other rows are counted
    over V.
    """
    match = ids == labels[:, None]
    ranks = match.to(torch.int64).argmax(dim=1)
    rest = (~match.any(dim=1)).nonzero().squeeze(1)
    if len(rest):
        others, label = logits[rest], labels[rest, None]
        own = others.gather(1, label)
        numbers = torch.arange(logits.shape[1], dtype=torch.int32, device=logits.device)
        earlier = (others > own) | ((others == own) & (numbers < label.int()))
        ranks[rest] = earlier.sum(dim=1, dtype=torch.int32).to(torch.int64)
    return ranks


def _stored_fields(tile: dict[str, Tensor], min_mass: float) -> Fields:
    """Apply `min_mass`, blank the padding cells and non-finite rows, and set the stored dtypes."""
    finite, k = tile["finite"], tile["topk_ids"].shape[1]
    logits = torch.where(finite[:, None], tile["topk_logits"], 0.0)
    high = torch.where(finite, tile["high"], 0.0).double()
    kept = (logits - high[:, None]).exp()
    # tails[:, n]: weight outside the first n cells, summed from the smallest weight on.
    cells = torch.cat([kept, torch.where(finite, tile["outside"], 0.0)[:, None].double()], dim=1)
    tails = cells.flip(1).cumsum(dim=1).flip(1)
    total, tails = tails[:, 0], tails / tails[:, :1]
    num_kept = torch.full_like(tile["label_rank"], k)
    if min_mass < 1.0:
        num_kept = 1 + (tails[:, 1:k] > 1.0 - min_mass).sum(dim=1)
    padding = torch.arange(k) >= torch.where(finite, num_kept, 0)[:, None]
    fields = {
        "topk_ids": tile["topk_ids"].masked_fill(padding, 0),
        "topk_logits": logits.masked_fill(padding, -torch.inf),
        "num_kept": num_kept,
        "logsumexp": high + total.log(),
        "label_logit": tile["label_logit"],
        "tail_mass": tails.gather(1, num_kept[:, None]).squeeze(1),
        "argmax": tile["topk_ids"][:, 0],
        "label_rank": tile["label_rank"],
    }
    return {
        name: (values if values.dim() == 2 else values.where(finite, 0))
        .numpy()
        .astype(FIELD_DTYPES[name])
        for name, values in fields.items()
    }
