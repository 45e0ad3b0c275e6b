"""`--mask`: rows chosen by the initial student, before its first step.

`reachable`: row i counts where p_S(y_i) >= p_th, the filter of reverse speculative decoding (RSD,
arXiv 2509.22230) on texts that exist.

`learnable`: with KL the divergence from the teacher's stored distribution, and R a reference that
was trained on it, the rows with the largest KL_S - KL_R count: the student is far from the teacher
there, and a model of its kind can come close (AdaSPEC, arXiv 2510.19779, which compares the student
of each step, in each batch).

The mask is computed once and kept beside the run, so that a resumed run has the same bits without
another forward pass.

Legend: R rows of all stores, N rows of a batch.
"""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from caskd.models import longest_first
from caskd.store import StoreBatch
from caskd.store.errors import CorruptError
from caskd.store.io import StrangeFileError, files, read_json_object, read_regular
from caskd.train.data.batches import MicroBatch, collate
from caskd.train.data.store_mix import StoreMix
from caskd.train.loss import ROW_STATS

MASK_FILE, BITS_FILE = "mask.json", "mask.bits"
_NLL, _KL, _DISTILLED = (ROW_STATS.index(name) for name in ("nll", "kl", "distilled"))
_SUMMED = 1 << 22
_MOST_BYTES = 16 << 30


@dataclass(frozen=True, eq=False)
class StudentMask:
    """Which rows of a mix of stores count.

    Attributes:
        kept: bool [R], in the order of the stores' examples.
        starts: int64, the first row of each example.
    """

    kept: npt.NDArray[np.bool_]
    starts: npt.NDArray[np.int64]

    @property
    def fraction(self) -> float:
        """Share of kept rows."""
        return float(self.kept.mean())

    def keep(self, _step: int, batch: StoreBatch) -> npt.NDArray[np.bool_]:
        """Mask [N] of a batch's rows; the same at every step."""
        counts = np.diff(batch.row_offsets)
        rows = [
            np.arange(start, start + count)
            for start, count in zip(self.starts[batch.example_indices], counts, strict=True)
        ]
        kept: npt.NDArray[np.bool_] = self.kept[np.concatenate(rows)]
        return kept


def row_scores(
    store: StoreMix,
    score: Callable[[MicroBatch], Tensor],
    *,
    fields: Sequence[str],
    sum_over_ranks: Callable[[Tensor], Tensor],
    batch_size: int,
    pad_id: int,
    rank: int,
    world_size: int,
    device: torch.device,
) -> npt.NDArray[np.float32]:
    """A score [R] of every row, from one pass over all examples. Every rank must call it.

    Args:
        store: all stores.
        score: scores [N] of a micro-batch.
        fields: of the rows that it reads.
        sum_over_ranks: element-wise sum of a tensor, on CPU.
        batch_size: examples of a forward pass on each rank.
        pad_id: of the student's tokenizer.
        rank: of this process.
        world_size: number of ranks.
        device: on which tensors are summed.
    """
    counts = store.row_counts().astype(np.int64)
    starts = np.cumsum(counts) - counts
    mine = torch.zeros(int(counts.sum()), dtype=torch.float32)
    examples = np.flatnonzero(counts).astype(np.int64)
    ordered = examples[longest_first(store.token_counts()[examples].astype(np.int64))]
    for start in range(0, len(ordered), batch_size * world_size):
        together = ordered[start : start + batch_size * world_size]
        own = together[rank::world_size]
        # All ranks run the student equally often, because ZeRO stage 3 gathers its weights.
        chosen = own if len(own) else together[:1]
        found = score(collate(store.read(chosen, fields), pad_id)).float().cpu()
        if len(own):
            rows = [np.arange(starts[one], starts[one] + counts[one]) for one in own]
            mine[torch.from_numpy(np.concatenate(rows))] = found
    summed = [sum_over_ranks(part.to(device)) for part in torch.split(mine, _SUMMED)]
    return np.asarray(torch.cat(summed).float().numpy())


def label_nll(stats: Tensor) -> Tensor:
    """Negative log-likelihood [N] of the labels, from `row_stats`."""
    return stats[:, _NLL]


def learnable_gain(student: Tensor, reference: Tensor) -> Tensor:
    """KL_S - KL_R [N] in nats, from `row_stats` of both; -inf without a teacher row."""
    gain = student[:, _KL] - reference[:, _KL]
    known = (student[:, _DISTILLED] > 0) & ~gain.isnan()
    return torch.where(known, gain, -math.inf)


def reachable_rows(nll: npt.NDArray[np.float32], p_th: float) -> npt.NDArray[np.bool_]:
    """Mask [R] of the rows whose label has at least the probability `p_th`."""
    return np.asarray(nll <= (-math.log(p_th) if p_th > 0 else math.inf))


def learnable_rows(gain: npt.NDArray[np.float32], share: float) -> npt.NDArray[np.bool_]:
    """Mask [R] of the largest gains, a share of those above -inf; of equal ones the first."""
    known = gain[gain > -np.inf]
    if not known.size:
        return np.zeros(len(gain), dtype=bool)
    num = max(1, round(share * known.size))
    least = np.partition(known, known.size - num)[known.size - num]
    kept = np.asarray(gain > least)
    kept[np.flatnonzero(gain == least)[: num - np.count_nonzero(kept)]] = True
    return kept


def mask_of(store: StoreMix, kept: npt.NDArray[np.bool_]) -> StudentMask:
    """The mask of a mix of stores, from one bool a row [R]."""
    counts = store.row_counts().astype(np.int64)
    return StudentMask(kept, np.cumsum(counts) - counts)


def write_mask(out: Path, mask: StudentMask, made_from: dict[str, Any]) -> None:
    """Keep a mask under a run's folder; the description last, which makes it complete."""
    content = np.packbits(mask.kept).tobytes()
    described = {
        **made_from,
        "num_rows": len(mask.kept),
        "keep_fraction": mask.fraction,
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    files.replace_file(out / BITS_FILE, content)
    files.replace_file(out / MASK_FILE, (json.dumps(described, indent=1) + "\n").encode())


def read_mask(out: Path, store: StoreMix, made_from: dict[str, Any]) -> StudentMask:
    """The mask that `write_mask` kept.

    Raises:
        CorruptError: it is missing, damaged or of another run.
    """
    try:
        described = read_json_object(out / MASK_FILE)
        content = read_regular(out / BITS_FILE, _MOST_BYTES)
    except (OSError, ValueError, StrangeFileError) as error:
        raise _strange(out, str(error)) from None
    num_rows = int(store.row_counts().sum(dtype=np.int64))
    expected = {**made_from, "num_rows": num_rows, "sha256": hashlib.sha256(content).hexdigest()}
    for name, value in expected.items():
        if described.get(name) != value:
            raise _strange(out, f"{name} is {described.get(name)!r}, not {value!r}")
    kept = np.unpackbits(np.frombuffer(content, np.uint8), count=num_rows).astype(bool)
    return mask_of(store, kept)


def _strange(out: Path, problem: str) -> CorruptError:
    return CorruptError(
        f"--mask: {out / MASK_FILE} and {BITS_FILE}: {problem}; expected the mask with which the "
        "run was started",
        cure="restore both files, or train again with a new --out",
    )
