"""The row fields of a sampled store: counted draws per row (random sampling KD, arXiv 2503.16870).

Legend: R rows of a tile, V vocabulary, N draws per row, h ids of a head, k = h + N.

Counts / N is an unbiased estimate of the teacher's distribution, and the gradient of a student's
cross-entropy with it is unbiased too. A top-k gives neither.
With a head, the h likeliest ids keep their probabilities, and the N draws estimate the rest, whose
mass is r: head + r * counts / N is unbiased too, and the variance of anything linear in it is at
most r times that of N draws of the whole distribution.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from caskd.precompute.rows.topk import Columns, Fields, row_columns, stored_fields
from caskd.store.format import FIELD_DTYPES, HEAD_SAMPLED, SAMPLED, RowKind
from caskd.store.write import ShardExample

CACHED_LOGITS = 1 << 19  # logits that a CPU handles at a time: 4 times faster than a whole tile
MASS_BITS = 40
"""A weight is exp(logit - highest) in units of 2^-40. Sums of these integers are exact in any order
of addition, and 2^21 ids fit into int64. Ids with a weight that rounds to 0 are never drawn."""


def filler_draws(num_rows: int, num_cells: int, kind: RowKind = SAMPLED) -> Fields:
    """Rows without a teacher: the filler of a shard, and examples with NaN or Inf."""
    cells = {array.name for array in kind.cells}
    rows: Fields = {
        name: np.zeros((num_rows, num_cells) if name in cells else num_rows, FIELD_DTYPES[name])
        for name in kind.fields
    }
    if "head_logits" in rows:
        rows["head_logits"][:] = -np.inf
    return rows


def uniforms(
    examples: Sequence[ShardExample], num_samples: int, seed: int
) -> npt.NDArray[np.float64]:
    """Random numbers in [0, 1) for every row of some examples, concatenated [R, N].

    They depend only on the seed, the example's index and the row within the example: Philox with
    the key (seed, index) generates the numbers of an example, in any batch, shard or worker.
    """
    parts = []
    for example in examples:
        stream = np.random.Philox(key=np.array([seed, example.index], np.uint64))
        raw = stream.random_raw(example.row_count * num_samples).reshape(-1, num_samples)
        parts.append((raw >> np.uint64(11)) * 2.0**-53)
    return np.concatenate(parts)


def draw_ids(logits: Tensor, numbers: Tensor | npt.NDArray[np.float64]) -> Tensor:
    """The id [R, N] of each number by inversion of the cumulative distribution of its row.

    Args:
        logits: [R, V] float32; the ids of a row with NaN or Inf are meaningless.
        numbers: [R, N] float64 in [0, 1); those of the logits' device need no copy.
    """
    quantiles = torch.as_tensor(numbers).to(logits.device)
    few = max(1, CACHED_LOGITS // logits.shape[1])
    step = few if logits.device.type == "cpu" else len(logits)
    return torch.cat(
        [
            _draw(logits[start : start + step], quantiles[start : start + step])
            for start in range(0, len(logits), step)
        ]
    )


def _draw(logits: Tensor, quantiles: Tensor) -> Tensor:
    """`draw_ids` for all rows at once."""
    weights = (logits - logits.amax(dim=1, keepdim=True)).exp_()
    mass = weights.mul_(2.0**MASS_BITS).round_().to(torch.int64).cumsum_(dim=1)
    ids = torch.searchsorted(mass, (quantiles * mass[:, -1:]).to(torch.int64), right=True)
    return ids.clamp_(max=logits.shape[1] - 1)


def sampled_fields(logits: Tensor, labels: Tensor, numbers: npt.NDArray[np.float64]) -> Fields:
    """Row fields of a sampled store from logits [R, V], labels [R] and `uniforms` [R, N]."""
    columns = sampled_columns(logits, labels, torch.from_numpy(numbers))
    return counted_fields({name: values.cpu().numpy() for name, values in columns.items()})


def sampled_columns(logits: Tensor, labels: Tensor, numbers: Tensor) -> Columns:
    """What `counted_fields` turns into the row fields of a sampled store, on the device.

    Args:
        logits: [R, V] of any float dtype, the padding of the embedding already cut off.
        labels: [R] int64, each below V.
        numbers: [R, N] in [0, 1), from `uniforms`.

    Returns:
        `sampled_ids` [R, N], the draws in their order; num_kept, 0 in a row with NaN or Inf;
        logsumexp, label_logit, argmax and label_rank as in a topk store.
    """
    logits = logits.float()
    columns = row_columns(logits, labels, top_k=1)
    return {
        "sampled_ids": draw_ids(logits, numbers),
        **{name: columns[name] for name in SAMPLED.fields if name in columns},
    }


def head_columns(logits: Tensor, labels: Tensor, numbers: Tensor, head: int) -> Columns:
    """What `head_fields` turns into the row fields of a store of draws with a head.

    Args:
        logits: [R, V] of any float dtype, the padding of the embedding already cut off.
        labels: [R] int64, each below V.
        numbers: [R, N] in [0, 1), from `uniforms`.
        head: h, below V.

    Returns:
        `topk_ids` and `topk_logits` [R, h] and `tail_mass` of the head; `sampled_ids` [R, N], draws
        of the other ids; the other columns as in a topk store.
    """
    logits = logits.float()
    columns = row_columns(logits, labels, top_k=head)
    rest = logits.scatter(1, columns["topk_ids"], -torch.inf)
    return {**columns, "sampled_ids": draw_ids(rest, numbers)}


def head_fields(arrays: Fields) -> Fields:
    """Row fields of a store of draws with a head, from `head_columns` on the host.

    Returns:
        sampled_ids uint32 and sampled_counts uint16 [R, k]: the head's ids in rank order with a
        count of 0, then the drawn ids by descending count, then ascending id; head_logits float32
        [R, k], -inf beyond the head; num_kept and num_head uint16; drawn_mass float32, the
        probability outside of the head; the other columns as in a topk store. A row with NaN or Inf
        anywhere has num_kept and num_head 0.
    """
    finite, head = arrays["num_kept"] > 0, arrays["topk_ids"].shape[1]
    ids, counts = count_draws(arrays["sampled_ids"])
    counts[~finite], ids[~finite] = 0, 0
    no_counts = np.zeros(arrays["topk_ids"].shape, np.int64)
    no_logits = np.full(ids.shape, -np.inf, np.float32)
    fields = {
        **arrays,
        "sampled_ids": np.concatenate([arrays["topk_ids"], ids], axis=1),
        "sampled_counts": np.concatenate([no_counts, counts], axis=1),
        "head_logits": np.concatenate([arrays["topk_logits"], no_logits], axis=1),
        "num_kept": np.where(finite, head + np.count_nonzero(counts, axis=1), 0),
        "num_head": np.where(finite, head, 0),
        "drawn_mass": arrays["tail_mass"],
    }
    return stored_fields({name: fields[name] for name in HEAD_SAMPLED.fields})


def counted_fields(arrays: Fields) -> Fields:
    """Row fields of a sampled store from columns that were copied to the host.

    Returns:
        sampled_ids uint32 and sampled_counts uint16 [R, N], descending count, then ascending id;
        num_kept uint16, the number of distinct ids; logsumexp, label_logit, argmax and label_rank
        as in a topk store. A row with NaN or Inf anywhere has num_kept 0 and zeros elsewhere.
    """
    ids, counts = count_draws(arrays["sampled_ids"])
    finite = arrays["num_kept"] > 0
    counts[~finite], ids[~finite] = 0, 0
    drawn = {
        "sampled_ids": ids,
        "sampled_counts": counts,
        "num_kept": np.count_nonzero(counts, axis=1),
    }
    fields = {**arrays, **drawn}
    return stored_fields({name: fields[name] for name in SAMPLED.fields})


def count_draws(
    draws: npt.NDArray[np.int64],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Distinct ids of each row of `draws` [R, N] and their counts, both [R, N], padded with zeros.

    The ids are in descending order of count, then ascending.
    """
    num_rows, num_samples = draws.shape
    ordered = np.sort(draws, axis=1)
    first = np.ones(draws.shape, bool)
    first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    cell = first.cumsum(axis=1) - 1 + np.arange(num_rows)[:, None] * num_samples
    counts = np.bincount(cell.reshape(-1), minlength=draws.size).reshape(draws.shape)
    ids = np.zeros(draws.shape, np.int64)
    ids.reshape(-1)[cell[first]] = ordered[first]
    keys = np.sort((num_samples - counts) << 32 | ids, axis=1)
    return keys & 0xFFFFFFFF, num_samples - (keys >> 32)
