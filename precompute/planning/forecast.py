"""What a capture will take: batches without running them, bytes, seconds, and the break-even.

Pure functions. Legend: R rows, k cells per row, E examples, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from caskd.store.format import StoreSpec, layout
from caskd.store.write import pilot_rows

# Bytes that real rows took, lowest and highest over corpora, vocabularies and dtypes of the teacher
# (benchmarks/results/store_encoding.csv), with some room: per row beside the cells. The bytes of a
# cell depend on the encoding (RowEncoding.cell_bytes).
COLUMN_BYTES = (8.0, 16.0)
ORDER_BYTES = (15_000, 45_000)  # of one order of ids
SMALLEST_MASS_SHARE = 0.3  # of the cells that --min-mass may leave
MAX_SHARDS = 64  # looked at; the others are taken to be like them
NUM_STRATA = 6
STUDENTS, EPOCHS = (1, 2, 4, 8), (1, 2, 3)

Lengths = npt.NDArray[np.signedinteger[Any]]


@dataclass(frozen=True)
class Batch:
    """A forward pass of the capture: which examples, and its tokens with padding."""

    examples: npt.NDArray[np.int64]
    num_tokens: int
    longest: int


def batches_of(token_counts: Lengths, examples: Lengths, token_budget: int) -> list[Batch]:
    """Batches in which a shard's examples run: longest first, as many as fit once padded.

    Args:
        token_counts: of every example [E].
        examples: those of the shard.
        token_budget: tokens of one forward pass.
    """
    ordered = examples[np.lexsort((examples, -token_counts[examples]))]
    batches = []
    while len(ordered):
        longest = int(token_counts[ordered[0]])
        chosen = ordered[: max(1, token_budget // longest)]
        batches.append(Batch(chosen, longest * len(chosen), longest))
        ordered = ordered[len(chosen) :]
    return batches


@dataclass(frozen=True)
class Stratum:
    """Batches of similar length, and the tokens (with padding) of all such batches in the store."""

    batches: Sequence[Batch]
    num_tokens: float


def strata_of(
    token_counts: Lengths,
    row_starts: Lengths,
    row_counts: Lengths,
    shard_rows: int,
    token_budget: int,
) -> list[Stratum]:
    """The capture's batches in groups of similar length and about equal work, longest first."""
    with_rows = np.flatnonzero(row_counts)
    shard_of = row_starts[with_rows] // shard_rows
    num_shards = int(shard_of.max()) + 1
    picked = np.unique(np.linspace(0, num_shards - 1, MAX_SHARDS).round().astype(np.int64))
    batches = [
        batch
        for shard in picked
        for batch in batches_of(token_counts, with_rows[shard_of == shard], token_budget)
    ]
    batches.sort(key=lambda batch: -batch.longest)
    seen = row_counts[with_rows[np.isin(shard_of, picked)]].sum()
    scale = float(row_counts.sum() / seen)
    work = np.cumsum([batch.num_tokens for batch in batches])
    group = np.minimum((work - 1) * NUM_STRATA // work[-1], NUM_STRATA - 1)
    groups = [[b for b, g in zip(batches, group, strict=True) if g == n] for n in range(NUM_STRATA)]
    return [
        Stratum(found, scale * sum(batch.num_tokens for batch in found))
        for found in groups
        if found
    ]


def forward_seconds(strata: Sequence[Stratum], seconds_per_token: Sequence[float]) -> float:
    """Time of all forward passes, from what a token took in each stratum."""
    pairs = zip(strata, seconds_per_token, strict=True)
    return sum(stratum.num_tokens * seconds for stratum, seconds in pairs)


def pilot_share(spec: StoreSpec) -> float:
    """Rows of the pilot, which the teacher answers twice, over all rows."""
    return pilot_rows(spec.num_rows) / spec.num_rows if spec.row_encoding.uses_id_orders else 0.0


def bytes_bracket(spec: StoreSpec, plan_bytes: int) -> tuple[int, int]:
    """Smallest and largest size to expect of a store, from what others took.

    Args:
        spec: of the store.
        plan_bytes: what the plan has written; it stays as it is.
    """
    orders = layout.num_orders(spec.num_rows) if spec.row_encoding.uses_id_orders else 0
    min_mass = spec.identity["capture"].get("min_mass", 1.0)  # a sampled store has none
    ends = []
    for end, share in enumerate((SMALLEST_MASS_SHARE if min_mass < 1 else 1.0, 1.0)):
        row = COLUMN_BYTES[end] + share * spec.num_cells * spec.row_encoding.cell_bytes[end]
        ends.append(int(plan_bytes + orders * ORDER_BYTES[end] + row * spec.num_rows))
    return ends[0], ends[1]


def break_even(capture_seconds: float, online_seconds: float) -> dict[str, Any]:
    """The cask against a teacher that runs beside every student, in every epoch.

    Args:
        capture_seconds: of the whole capture, once.
        online_seconds: of the teacher's forward passes over the corpus once.

    Returns:
        `student_epochs` from which the cask costs less, and hours of the teacher for some numbers
        of students and epochs.
    """
    return {
        "student_epochs": int(capture_seconds // online_seconds) + 1,
        "cask_hours": capture_seconds / 3600,
        "online_hours": {
            str(students): {str(n): students * n * online_seconds / 3600 for n in EPOCHS}
            for students in STUDENTS
        },
    }
