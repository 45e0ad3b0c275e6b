"""The row fields of a topk store, computed from a tile of logits.

Legend: N rows of a tile, V vocabulary, k cells kept per row, C candidates for the k cells.

torch.topk guarantees no order among equal values, nor which of them it keeps at rank k, and logits
of bfloat16 models tie often. Here the order is always descending logit, then ascending id, on any
device.

The cost must be small compared with the teacher's, so V is read only where `passes` reads it.
Nothing here waits for a GPU: the columns of a tile stay on its device until `row_fields` or a
teacher copies them.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from caskd.precompute.rows.pass_check import passes_for
from caskd.precompute.rows.passes import BLOCK, Passes
from caskd.store.format import FIELD_DTYPES, TOPK

Fields = dict[str, npt.NDArray[Any]]
Columns = dict[str, Tensor]
"""Row fields on the device that computed them, in whatever dtype they were computed."""


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
    """The fields of `row_columns` in the dtypes of a store.

    Returns:
        topk_ids uint32 and topk_logits float32 [N, k]; num_kept uint16, logsumexp, label_logit and
        tail_mass float32, argmax and label_rank uint32, all [N].
    """
    columns = row_columns(logits, labels, top_k=top_k, min_mass=min_mass)
    return stored_fields({name: values.cpu().numpy() for name, values in columns.items()})


def stored_fields(arrays: Fields) -> Fields:
    """Columns that were copied to the host, in the dtypes of a store."""
    return {name: values.astype(FIELD_DTYPES[name], copy=False) for name, values in arrays.items()}


def row_columns(
    logits: Tensor,
    labels: Tensor,
    *,
    top_k: int,
    min_mass: float = 1.0,
    passes: Passes | None = None,
) -> Columns:
    """Row fields of a store from logits.

    Args:
        logits: [N, V] of any float dtype, the padding of the embedding already cut off.
        labels: [N] int64, each below V.
        top_k: k, at most V.
        min_mass: keep the shortest prefix of the k cells whose probability reaches this.
        passes: reads V; by default the fastest for the device.

    Returns:
        The fields of `row_fields`. A row with NaN or Inf anywhere has num_kept 0, logits -inf and
        zeros elsewhere.
    """
    passes = passes or passes_for(logits.device)
    logits = passes.prepared(logits)
    maxima, finite = passes.maxima(logits)
    values, ids = _topk(logits, maxima, top_k)
    label_logit = logits.gather(1, labels[:, None]).squeeze(1).float()
    rest = passes.rest(logits, values, ids, label_logit, labels)
    tile = {
        "topk_ids": ids,
        "topk_logits": values,
        "high": values[:, 0],
        "outside": rest.outside,
        "label_logit": label_logit,
        "label_rank": rest.label_rank,
        "finite": finite,
    }
    return _masked_columns(tile, min_mass)


def _topk(logits: Tensor, maxima: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest logits [N, k], float32, and their ids: descending, ties to the lowest id.

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
    keys = order_keys(logits.gather(1, ids.clamp(max=num_ids - 1)).float(), ids)  # [N, C]
    keys.masked_fill_(ids >= num_ids, _LOWEST_KEY)  # past the end of a short last block
    ids = ids.gather(1, keys.topk(k, dim=1).indices)
    return logits.gather(1, ids).float(), ids


_LOWEST_KEY = torch.iinfo(torch.int64).min


def order_keys(values: Tensor, ids: Tensor) -> Tensor:
    """int64 keys of float32 values: larger for a larger value and, among ties, for a lower id.

    All keys differ, so topk has no tie to break. The bits of float32 values sort as integers once
    the bits of negative values, except the sign, are flipped. Adding 0 turns -0 into 0.
    """
    bits = (values + 0.0).view(torch.int32)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.to(torch.int64) << 32) - ids


def _masked_columns(tile: Columns, min_mass: float) -> Columns:
    """Apply `min_mass`, and blank the padding cells and non-finite rows."""
    finite, k = tile["finite"], tile["topk_ids"].shape[1]
    logits = torch.where(finite[:, None], tile["topk_logits"], 0.0)
    high = torch.where(finite, tile["high"], 0.0).double()
    kept = (logits - high[:, None]).exp()
    # tails[:, n]: weight outside the first n cells, summed from the smallest weight on.
    cells = torch.cat([kept, torch.where(finite, tile["outside"], 0.0)[:, None].double()], dim=1)
    tails = _sums_to_the_end(cells)
    total, tails = tails[:, 0], tails / tails[:, :1]
    num_kept = torch.full_like(tile["label_rank"], k)
    if min_mass < 1.0:
        num_kept = 1 + (tails[:, 1:k] > 1.0 - min_mass).sum(dim=1)
    padding = torch.arange(k, device=finite.device) >= torch.where(finite, num_kept, 0)[:, None]
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
        name: values if values.dim() == 2 else values.where(finite, 0)
        for name, values in fields.items()
    }


def _sums_to_the_end(cells: Tensor) -> Tensor:
    """[N, C] of each cell and those after it, float64."""
    if cells.device.type == "cpu":
        return cells.flip(1).cumsum(dim=1).flip(1)
    # Deterministic kernels have no running sum on a GPU: each round adds what twice as many hold.
    step = 1
    while step < cells.shape[1]:
        cells = cells + torch.nn.functional.pad(cells[:, step:], (0, step))
        step *= 2
    return cells
