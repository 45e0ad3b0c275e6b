"""From a tile of logits to N draws of each row, counted (random sampling KD, arXiv 2503.16870).

Legend: R rows of a tile, V vocabulary, N draws per row.

Counts / N is an unbiased estimate of the teacher's whole distribution, and so is the gradient of a
student's cross-entropy with it; a top-k is neither.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from caskd.precompute.rows.topk import Fields, row_fields
from caskd.store.format import FIELD_DTYPES, SAMPLED_FIELDS
from caskd.store.write import ShardExample

CACHED_LOGITS = 1 << 19  # logits that a CPU takes at a time: four times faster than a whole tile
MASS_BITS = 40
"""A weight is exp(logit - highest) in units of 2^-40. Sums of such integers are exact, whatever the
device adds first, and 2^21 ids fit into int64; ids less likely than that are never drawn."""


def filler_draws(num_rows: int, num_samples: int) -> Fields:
    """Rows before any is computed, and those at a shard's end: no teacher row anywhere."""
    return {
        name: np.zeros(
            (num_rows, num_samples) if name.startswith("sampled_") else num_rows, FIELD_DTYPES[name]
        )
        for name in SAMPLED_FIELDS
    }


def uniforms(
    examples: Sequence[ShardExample], num_samples: int, seed: int
) -> npt.NDArray[np.float64]:
    """Numbers in [0, 1) for every row of some examples, concatenated [R, N].

    They depend on (seed, example, row within it) alone: Philox with the key (seed, example) counts
    through the example's rows, whatever batch, shard or worker it is in.
    """
    parts = []
    for example in examples:
        stream = np.random.Philox(key=np.array([seed, example.index], np.uint64))
        raw = stream.random_raw(example.row_count * num_samples).reshape(-1, num_samples)
        parts.append((raw >> np.uint64(11)) * 2.0**-53)
    return np.concatenate(parts)


def draw_ids(logits: Tensor, numbers: npt.NDArray[np.float64]) -> Tensor:
    """The id [R, N] that each number meets in the cumulative distribution of its row.

    Args:
        logits: [R, V] float32; what comes of a row with NaN or Inf means nothing.
        numbers: [R, N] in [0, 1).
    """
    places = torch.from_numpy(numbers).to(logits.device)
    few = max(1, CACHED_LOGITS // logits.shape[1])
    step = few if logits.device.type == "cpu" else len(logits)
    return torch.cat(
        [
            _draw(logits[start : start + step], places[start : start + step])
            for start in range(0, len(logits), step)
        ]
    )


def _draw(logits: Tensor, places: Tensor) -> Tensor:
    """`draw_ids` of some rows at once."""
    weights = (logits - logits.amax(dim=1, keepdim=True)).exp_()
    mass = weights.mul_(2.0**MASS_BITS).round_().to(torch.int64).cumsum_(dim=1)
    ids = torch.searchsorted(mass, (places * mass[:, -1:]).to(torch.int64), right=True)
    return ids.clamp_(max=logits.shape[1] - 1)


def sampled_fields(logits: Tensor, labels: Tensor, numbers: npt.NDArray[np.float64]) -> Fields:
    """Row fields of a sampled store from logits.

    Args:
        logits: [R, V] float32, the padding of the embedding already cut off.
        labels: [R] int64, each below V.
        numbers: [R, N] in [0, 1), from `uniforms`.

    Returns:
        sampled_ids uint32 and sampled_counts uint16 [R, N], descending count, then ascending id;
        num_kept uint16, the different ids; logsumexp, label_logit, argmax, label_rank as in a
        top-k. A row with NaN or Inf anywhere has num_kept 0 and zeros elsewhere.
    """
    columns = row_fields(logits, labels, top_k=1)
    ids, counts = tally_draws(draw_ids(logits, numbers).cpu().numpy())
    finite = columns["num_kept"] > 0
    counts[~finite], ids[~finite] = 0, 0
    drawn = {
        "sampled_ids": ids,
        "sampled_counts": counts,
        "num_kept": np.count_nonzero(counts, axis=1),
    }
    fields = {**columns, **drawn}
    return {name: fields[name].astype(FIELD_DTYPES[name]) for name in SAMPLED_FIELDS}


def tally_draws(
    draws: npt.NDArray[np.int64],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Different ids of each row of `draws` [R, N] and their counts, both [R, N] with zeros behind.

    Descending count, then ascending id.
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
