"""Random masks, the control of a CAT mask: at each step as many rows as another run kept.

Legend: S steps, N rows of a batch, B its examples.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from caskd.store import StoreBatch
from caskd.store.errors import UsageError
from caskd.store.io import check_readable, parse_json
from caskd.train.metrics import METRICS_FILE

FLAG = "--keep-fraction-from"


@dataclass(frozen=True, eq=False)
class RandomMask:
    """Keeps each row of a step with the same probability, whatever the row's content.

    A row's random number depends on (seed, step, example, row within the example) alone: Philox has
    the key (seed, example), the step sets its counter, and the rows are counted from there. So the
    mask is the same for any micro-batches, packing and ranks, and it differs when an example comes
    again in a later step.

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
        """Mask [N] of a batch's rows at a step; 0 is the first step."""
        return self.keep_counts(step, batch.example_indices, np.diff(batch.row_offsets))

    def keep_counts(
        self, step: int, examples: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.bool_]:
        """Mask [N] of the rows, or spans, of a batch.

        Args:
            step: 0 is the first step.
            examples: [B] indices of the examples.
            counts: [B] rows of each.
        """
        raw = [
            self._stream(step, example).random_raw(count)
            for example, count in zip(examples.tolist(), counts.tolist(), strict=True)
        ]
        # Below 1, so that fraction 1 keeps every row.
        numbers = (np.concatenate(raw) >> np.uint64(11)) * 2.0**-53
        kept: npt.NDArray[np.bool_] = numbers < self.fractions[step]
        return kept

    def _stream(self, step: int, example: int) -> np.random.Philox:
        # Counter 0 belongs to the draws of a sampled store, which may have the same seed. Steps
        # count from 1, as in metrics.jsonl.
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
        UsageError: the file is missing, has fewer steps, or a line is not the record of its step.
    """
    file = path / METRICS_FILE if path.is_dir() else path
    try:
        lines = file.read_bytes().splitlines()
    except OSError as error:
        check_readable(error, f"{FLAG} {file}")
        raise UsageError(
            f"{FLAG} {path}: could not read {METRICS_FILE}; expected the directory of a trained "
            f"run, or its {METRICS_FILE}; pass one of these"
        ) from None
    fractions = [_fraction(line, step) for step, line in enumerate(lines[:steps], start=1)]
    for step, fraction in enumerate(fractions, start=1):
        if fraction is None:
            raise UsageError(
                f"{FLAG} {file}: line {step} is not the record of step {step} with a keep_fraction "
                f"from 0 to 1; expected the unchanged {METRICS_FILE} of a caskd train run; pass "
                "that file"
            )
    if len(fractions) < steps:
        raise UsageError(
            f"{FLAG} {file}: {len(fractions):,} steps are recorded; expected the {steps:,} of "
            "--steps; finish that run with --resume, choose a run with as many steps, or lower "
            "--steps"
        )
    return np.array(fractions, np.float64)


def _fraction(line: bytes, step: int) -> float | None:
    """The keep_fraction of a line; None if the line is not the record of this step."""
    try:
        values: dict[str, Any] = parse_json(line)
        fraction = float(values["keep_fraction"])
        is_good = values["step"] == step and 0 <= fraction <= 1
    except (ValueError, KeyError, TypeError):
        return None
    return fraction if is_good else None
