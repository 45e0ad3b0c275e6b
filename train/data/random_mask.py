"""The control of a mask: rows kept at random, as often as another run kept them at each step.

Legend: S steps, N rows of a batch, B its examples.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from caskd.store import StoreBatch
from caskd.store.errors import UsageError
from caskd.train.metrics import METRICS_FILE

FLAG = "--keep-fraction-from"


@dataclass(frozen=True, eq=False)
class RandomMask:
    """Keeps each row of a step with one probability, whatever the row says.

    A row's number depends on (seed, step, example, row within it) alone: Philox with the key (seed,
    example) counts through the rows from a place that the step chooses. So the mask is the same for
    any micro-batches, packing and ranks, and another one when an example is seen again in a later
    step.

    Attributes:
        seed: of the run.
        fractions: float64 [S], the probability at each step.
    """

    seed: int
    fractions: npt.NDArray[np.float64]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the fractions as little-endian float64."""
        return hashlib.sha256(self.fractions.astype("<f8").tobytes()).hexdigest()

    def keep(self, step: int, batch: StoreBatch) -> npt.NDArray[np.bool_]:
        """Which rows [N] of a batch are kept at a step; 0 is the first step."""
        counts = np.diff(batch.row_offsets).tolist()
        raw = [
            self._stream(step, example).random_raw(count)
            for example, count in zip(batch.example_indices.tolist(), counts, strict=True)
        ]
        numbers = (np.concatenate(raw) >> np.uint64(11)) * 2.0**-53  # below 1: it keeps every row
        kept: npt.NDArray[np.bool_] = numbers < self.fractions[step]
        return kept

    def _stream(self, step: int, example: int) -> np.random.Philox:
        # From 1, as metrics.jsonl counts: place 0 is where the draws of a sampled store come from,
        # which may have the same seed.
        return np.random.Philox(
            key=np.array([self.seed, example], np.uint64),
            counter=np.array([0, 0, 0, step + 1], np.uint64),
        )


def read_fractions(path: Path, steps: int) -> npt.NDArray[np.float64]:
    """The keep_fraction [S] of the first S steps of a run.

    Args:
        path: the run's directory, or its metrics.jsonl.
        steps: S.

    Raises:
        UsageError: there is no such file, it has fewer steps, or a line is not a step's.
    """
    file = path / METRICS_FILE if path.is_dir() else path
    try:
        lines = file.read_bytes().splitlines()
    except OSError:
        raise UsageError(
            f"{FLAG} {path}: no {METRICS_FILE} could be read there. Expected the directory of a "
            f"run that has been trained, or its {METRICS_FILE}."
        ) from None
    fractions = [_fraction(line, step) for step, line in enumerate(lines[:steps], start=1)]
    for step, fraction in enumerate(fractions, start=1):
        if fraction is None:
            raise UsageError(
                f"{FLAG} {file}: line {step} is not that of step {step} with a keep_fraction from "
                f"0 to 1. Expected the {METRICS_FILE} of a run of caskd train, unchanged."
            )
    if len(fractions) < steps:
        raise UsageError(
            f"{FLAG} {file}: {len(fractions):,} steps are recorded, but --steps is {steps:,}. "
            "Finish that run (--resume), take one of as many steps, or give fewer --steps here."
        )
    return np.array(fractions, np.float64)


def _fraction(line: bytes, step: int) -> float | None:
    """The keep_fraction of a line, if it is that of this step."""
    try:
        values: dict[str, Any] = json.loads(line)
        fraction = float(values["keep_fraction"])
        is_good = values["step"] == step and 0 <= fraction <= 1
    except (ValueError, KeyError, TypeError):
        return None
    return fraction if is_good else None
