"""Forecast a capture: its batches without running them, bytes, seconds, and the break-even.

Pure functions. Legend: R rows, k cells per row, E examples, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from caskd.models import padded_batches
from caskd.store.format import StoreSpec
from caskd.store.spacing import thin

# Measured bytes, lowest and highest over corpora, vocabularies and teacher dtypes
# (benchmarks/results/store_fitted.csv and store_encoding.csv), with a margin: per row beside the
# cells. The bytes of a cell depend on the encoding (RowEncoding.cell_bytes).
COLUMN_BYTES = (4.0, 16.0)
SMALLEST_MASS_SHARE = 0.3  # smallest share of the cells that --min-mass may leave
MAX_SHARDS = 64  # of a larger store, a sample of this many
NUM_STRATA = 6
STUDENTS, EPOCHS = (1, 2, 4, 8), (1, 2, 3)

Ids = npt.NDArray[np.int64]
Lengths = npt.NDArray[np.signedinteger[Any]]


@dataclass(frozen=True)
class PlannedBatch:
    """One forward pass of the capture: its examples, and its tokens with padding."""

    examples: npt.NDArray[np.int64]
    num_tokens: int
    longest: int


def planned_batches(
    token_counts: Lengths, examples: Ids, token_budget: int
) -> Iterator[PlannedBatch]:
    """The batches in which the capture runs the examples of one shard, longest first.

    Args:
        token_counts: tokens of every example of the store [E].
        examples: indices of the shard's examples, ascending.
        token_budget: tokens of one forward pass.
    """
    lengths = token_counts[examples].astype(np.int64)
    for positions in padded_batches(lengths, token_budget):
        longest = int(lengths[positions[0]])
        yield PlannedBatch(examples[positions], longest * len(positions), longest)


@dataclass(frozen=True)
class Stratum:
    """Batches of similar length, and the tokens (with padding) of all such batches in the store."""

    batches: Sequence[PlannedBatch]
    num_tokens: float


def strata_of(
    token_counts: Lengths,
    row_starts: Lengths,
    row_counts: Lengths,
    shard_rows: int,
    token_budget: int,
) -> list[Stratum]:
    """Group the capture's batches by similar length and about equal work, longest first."""
    with_rows = np.flatnonzero(row_counts)
    shard_of = row_starts[with_rows] // shard_rows
    num_shards = int(shard_of.max()) + 1
    sampled = thin(num_shards, MAX_SHARDS)
    batches = [
        batch
        for shard in sampled
        for batch in planned_batches(token_counts, with_rows[shard_of == shard], token_budget)
    ]
    batches.sort(key=lambda batch: -batch.longest)
    sampled_rows = row_counts[with_rows[np.isin(shard_of, sampled)]].sum()
    scale = float(row_counts.sum() / sampled_rows)
    work = np.cumsum([batch.num_tokens for batch in batches])
    group = np.minimum((work - 1) * NUM_STRATA // work[-1], NUM_STRATA - 1)
    groups = [[b for b, g in zip(batches, group, strict=True) if g == n] for n in range(NUM_STRATA)]
    return [
        Stratum(members, scale * sum(batch.num_tokens for batch in members))
        for members in groups
        if members
    ]


def forward_seconds(strata: Sequence[Stratum], seconds_per_token: Sequence[float]) -> float:
    """Seconds of all forward passes, from the seconds per token of each stratum."""
    pairs = zip(strata, seconds_per_token, strict=True)
    return sum(stratum.num_tokens * seconds for stratum, seconds in pairs)


def capture_seconds(forward: float, encoding: float) -> float:
    """Seconds of a capture on one device, without loading the teacher.

    Rows are encoded in the background while the teacher computes the next shard, so the slower of
    the two sets the pace.
    """
    return max(forward, encoding)


def bytes_bracket(spec: StoreSpec, plan_bytes: int) -> tuple[int, int]:
    """Smallest and largest bytes to expect of a store, from measurements of other stores.

    Args:
        spec: the store's.
        plan_bytes: bytes that the plan wrote, which are exact.
    """
    min_mass = spec.identity["capture"].get("min_mass", 1.0)  # sampled stores have no min_mass
    ends = []
    for end, share in enumerate((SMALLEST_MASS_SHARE if min_mass < 1 else 1.0, 1.0)):
        row = COLUMN_BYTES[end] + share * spec.num_cells * spec.row_encoding.cell_bytes[end]
        ends.append(int(plan_bytes + row * spec.num_rows))
    return ends[0], ends[1]


def break_even(capture_seconds: float, online_seconds: float) -> dict[str, Any]:
    """Compare the capture with a teacher that runs beside every student in every epoch.

    Args:
        capture_seconds: seconds of the whole capture, once.
        online_seconds: seconds of the teacher's forward passes over the corpus, once.

    Returns:
        `student_epochs` from which the capture costs less, and hours of the teacher for several
        numbers of students and epochs.
    """
    return {
        "student_epochs": int(capture_seconds // online_seconds) + 1,
        "cask_hours": capture_seconds / 3600,
        "online_hours": {
            str(students): {str(n): students * n * online_seconds / 3600 for n in EPOCHS}
            for students in STUDENTS
        },
    }
