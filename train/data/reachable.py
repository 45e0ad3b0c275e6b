"""`--mask reachable`: rows whose label the initial student finds likely enough to learn from.

Row i counts where p_S(y_i) >= p_th, with the student before its first step: the filter of reverse
speculative decoding (RSD, arXiv 2509.22230) on texts that exist. The mask is computed once and
kept beside the run, so that a resumed run has the same bits without another forward pass.

Legend: R rows of all stores, N rows of a batch.
"""

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
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
_NLL = ROW_STATS.index("nll")
_SUMMED = 1 << 22
_MOST_BYTES = 16 << 30


@dataclass(frozen=True, eq=False)
class ReachableMask:
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


def measured_mask(
    store: StoreMix,
    p_th: float,
    *,
    evaluate: Callable[[MicroBatch], Tensor],
    sum_over_ranks: Callable[[Tensor], Tensor],
    batch_size: int,
    pad_id: int,
    rank: int,
    world_size: int,
    device: torch.device,
) -> ReachableMask:
    """Compute the mask with one forward pass over all examples. Every rank must call it.

    Args:
        store: all stores.
        p_th: least probability of a label.
        evaluate: `row_stats` of a micro-batch.
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
    limit = -math.log(p_th) if p_th > 0 else math.inf
    examples = np.flatnonzero(counts).astype(np.int64)
    ordered = examples[longest_first(store.token_counts()[examples].astype(np.int64))]
    for start in range(0, len(ordered), batch_size * world_size):
        together = ordered[start : start + batch_size * world_size]
        own = together[rank::world_size]
        # All ranks run the student equally often, because ZeRO stage 3 gathers its weights.
        chosen = own if len(own) else together[:1]
        batch = replace(collate(store.read(chosen, ("num_kept",)), pad_id), teacher=None)
        kept = (evaluate(batch)[:, _NLL] <= limit).float().cpu()
        if len(own):
            rows = [np.arange(starts[one], starts[one] + counts[one]) for one in own]
            mine[torch.from_numpy(np.concatenate(rows))] = kept
    summed = [sum_over_ranks(part.to(device)) for part in torch.split(mine, _SUMMED)]
    return ReachableMask((torch.cat(summed) > 0).numpy(), starts)


def write_mask(out: Path, mask: ReachableMask, made_from: dict[str, Any]) -> None:
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


def read_mask(out: Path, store: StoreMix, made_from: dict[str, Any]) -> ReachableMask:
    """The mask that `write_mask` kept.

    Raises:
        CorruptError: it is missing, damaged or of another run.
    """
    try:
        described = read_json_object(out / MASK_FILE)
        content = read_regular(out / BITS_FILE, _MOST_BYTES)
    except (OSError, ValueError, StrangeFileError) as error:
        raise _strange(out, str(error)) from None
    counts = store.row_counts().astype(np.int64)
    num_rows = int(counts.sum())
    expected = {**made_from, "num_rows": num_rows, "sha256": hashlib.sha256(content).hexdigest()}
    for name, value in expected.items():
        if described.get(name) != value:
            raise _strange(out, f"{name} is {described.get(name)!r}, not {value!r}")
    kept = np.unpackbits(np.frombuffer(content, np.uint8), count=num_rows).astype(bool)
    return ReachableMask(kept, np.cumsum(counts) - counts)


def _strange(out: Path, problem: str) -> CorruptError:
    return CorruptError(
        f"--mask: {out / MASK_FILE} and {BITS_FILE}: {problem}; expected the mask with which the "
        "run was started",
        cure="restore both files, or train again with a new --out",
    )
