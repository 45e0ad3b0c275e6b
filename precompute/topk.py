"""From a tile of logits to the fields of a row.

Legend: N rows of a tile, V vocabulary, k cells kept per row.

torch.topk promises neither an order among equal values nor which of them it takes at the k-th
place, and logits of bfloat16 models tie all the time. Here the order is always descending logit,
then ascending id, on any device.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Fields = dict[str, npt.NDArray[Any]]

FIELD_DTYPES = {
    "topk_ids": np.uint32,
    "topk_logits": np.float32,
    "num_kept": np.uint16,
    "logsumexp": np.float32,
    "label_logit": np.float32,
    "tail_mass": np.float32,
    "argmax": np.uint32,
    "label_rank": np.uint32,
}


def filler_rows(num_rows: int, top_k: int) -> Fields:
    """Rows before any is computed, and those at a shard's end: no teacher row anywhere."""
    rows: Fields = {
        name: np.zeros((num_rows, top_k) if name.startswith("topk_") else num_rows, dtype)
        for name, dtype in FIELD_DTYPES.items()
    }
    rows["topk_logits"][:] = -np.inf
    return rows


def row_fields(logits: Tensor, labels: Tensor, *, top_k: int, min_mass: float = 1.0) -> Fields:
    """Row fields of a store from logits.

    Args:
        logits: [N, V] float32, the padding of the embedding already cut off.
        labels: [N] int64, each below V.
        top_k: k, at most V.
        min_mass: keep the shortest prefix of the k whose probability reaches this.

    Returns:
        topk_ids uint32 and topk_logits float32 [N, k]; num_kept uint16, logsumexp, label_logit and
        tail_mass float32, argmax and label_rank uint32, all [N]. A row with NaN or Inf anywhere
        has num_kept 0, logits -inf and zeros elsewhere.
    """
    low, high = torch.aminmax(logits, dim=1)
    finite = torch.isfinite(low) & torch.isfinite(high)
    if not bool(finite.all()):
        logits = torch.where(finite[:, None], logits, 0.0)
        high = torch.where(finite, high, 0.0)
    values, ids = ordered_topk(logits, top_k)
    logsumexp, outside = _log_sum_and_outside(logits, high, ids)
    on_device = {
        "topk_ids": ids,
        "topk_logits": values,
        "logsumexp": logsumexp,
        "label_logit": logits.gather(1, labels[:, None]).squeeze(1),
        "outside": outside,
        "label_rank": label_ranks(logits, labels, ids),
        "finite": finite,
    }
    return _finish({name: tensor.cpu().numpy() for name, tensor in on_device.items()}, min_mass)


def ordered_topk(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest logits [N, k] and their ids, in descending order, ties to the lowest id."""
    values, ids = torch.topk(logits, min(k + 1, logits.shape[1]), dim=1)
    if ids.shape[1] > k:
        # A tie across the k-th place shows in one more cell: then, and only then, which of the
        # tied ids torch took is arbitrary.
        tied = (values[:, k - 1] == values[:, k]).nonzero().squeeze(1)
        values, ids = values[:, :k], ids[:, :k]
        if len(tied):
            ids[tied] = _lowest_ids_at_the_end(logits[tied], values[tied], ids[tied])
    ids, order = ids.sort(dim=1)
    values, order = values.gather(1, order).sort(dim=1, descending=True, stable=True)
    return values, ids.gather(1, order)


def _lowest_ids_at_the_end(logits: Tensor, values: Tensor, ids: Tensor) -> Tensor:
    """`ids` [N, k] with the cells that tie for the last place given to the lowest ids that do."""
    last = values[:, -1:]
    num_above = (values > last).sum(dim=1)
    equal = logits == last
    rows, columns = equal.nonzero().unbind(1)  # row by row, ids ascending
    num_equal = equal.sum(dim=1)
    first = num_equal.cumsum(dim=0) - num_equal
    place = num_above[rows] + torch.arange(len(rows), device=rows.device) - first[rows]
    kept = place < ids.shape[1]
    ids = ids.clone()
    ids[rows[kept], place[kept]] = columns[kept]
    return ids


def label_ranks(logits: Tensor, labels: Tensor, ids: Tensor) -> Tensor:
    """#{v: z_v > z_y} + #{v < y: z_v = z_y} [N], right outside the top-k too.

    Inside the (ordered) top-k the rank is the place; only the other rows are counted over V.
    """
    match = ids == labels[:, None]
    ranks = match.to(torch.int64).argmax(dim=1)
    rest = (~match.any(dim=1)).nonzero().squeeze(1)
    if len(rest):
        others, label = logits[rest], labels[rest, None]
        own = others.gather(1, label)
        before = torch.arange(logits.shape[1], device=logits.device) < label
        ranks[rest] = ((others > own) | ((others == own) & before)).sum(dim=1)
    return ranks


def _log_sum_and_outside(logits: Tensor, high: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """logsumexp [N] and the probability outside `ids` [N].

    The latter is a sum of what is left, not 1 minus a sum: it keeps its digits when it is 1e-8.
    """
    weights = (logits - high[:, None]).exp_()
    total = weights.sum(dim=1)
    weights.scatter_(1, ids, 0.0)
    return high + total.log(), weights.sum(dim=1) / total


def _finish(tile: Fields, min_mass: float) -> Fields:
    """Apply `min_mass`, blank the padding cells and non-finite rows, and set the stored dtypes."""
    logits, finite = tile["topk_logits"], tile["finite"]
    k = logits.shape[1]
    kept_mass = np.exp(logits.astype(np.float64) - tile["logsumexp"][:, None])
    # tails[:, n]: probability outside the first n cells, summed from the small end.
    tails = np.empty((len(logits), k + 1))
    tails[:, k] = tile["outside"]
    tails[:, :k] = kept_mass[:, ::-1].cumsum(axis=1)[:, ::-1] + tails[:, k:]
    num_kept = np.full(len(logits), k)
    if min_mass < 1.0:
        reached = tails[:, 1:k] <= 1.0 - min_mass
        num_kept = (
            np.where(reached.any(axis=1), reached.argmax(axis=1) + 1, k) if k > 1 else num_kept
        )
    num_kept = np.where(finite, num_kept, 0)
    padding = np.arange(k) >= num_kept[:, None]
    tail_mass = np.take_along_axis(tails, num_kept[:, None], axis=1)[:, 0]
    fields = {
        "topk_ids": np.where(padding, 0, tile["topk_ids"]),
        "topk_logits": np.where(padding, -np.inf, logits),
        "num_kept": num_kept,
        "logsumexp": np.where(finite, tile["logsumexp"], 0),
        "label_logit": np.where(finite, tile["label_logit"], 0),
        "tail_mass": np.where(finite, tail_mass, 0),
        "argmax": np.where(finite, tile["topk_ids"][:, 0], 0),
        "label_rank": np.where(finite, tile["label_rank"], 0),
    }
    return {name: values.astype(FIELD_DTYPES[name]) for name, values in fields.items()}
