"""How well the teacher did on the labels of a store, in one pass over its columns.

Legend: N rows of a batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from caskd.store.errors import UsageError
from caskd.store.io import progress
from caskd.store.read import StoreBatch, TeacherStore

FIELDS = ("num_kept", "logsumexp", "label_logit", "label_rank")
EXAMPLES_AT_ONCE = 2048
WIDTH = 40


@dataclass(frozen=True)
class TeacherQuality:
    """Sums over the rows for which the teacher's answer is finite.

    Attributes:
        num_rows: how many those are.
        label_log_probability: sum of log p(label), nats.
        tail_mass: sum of the probability outside the kept cells; None of a sampled store, which
            has no such thing.
        ranks: rows by the label's rank: 0, then 1, 2-3, 4-7, 8-15, ... (the last nonzero one last).
    """

    num_rows: int
    label_log_probability: float
    tail_mass: float | None
    ranks: tuple[int, ...]

    @property
    def accuracy(self) -> float:
        """Share of rows whose label is the teacher's first choice."""
        return self.ranks[0] / self.num_rows

    @property
    def perplexity(self) -> float:
        """exp of the mean negative log-probability of the label."""
        return float(np.exp(-self.label_log_probability / self.num_rows))

    @property
    def mean_tail_mass(self) -> float | None:
        """Mean probability outside the kept cells, where a row has any."""
        return None if self.tail_mass is None else self.tail_mass / self.num_rows

    def rows(self) -> dict[str, str]:
        """The figures for a table."""
        figures = {
            "rows measured": f"{self.num_rows:,}",
            "teacher's accuracy on the labels": f"{self.accuracy:.2%}",
            "teacher's perplexity on the labels": f"{self.perplexity:,.3f}",
        }
        if self.mean_tail_mass is not None:
            figures["mean tail mass (probability that is not kept)"] = f"{self.mean_tail_mass:.5f}"
        return figures

    def histogram(self) -> str:
        """The label's rank among the teacher's choices, as text in a code block."""
        names = rank_names(len(self.ranks))
        space, most = max(map(len, names)), max(self.ranks)
        lines = [
            f"    {name:>{space}}  {count / self.num_rows:7.2%}  " + "#" * (WIDTH * count // most)
            for name, count in zip(names, self.ranks, strict=True)
        ]
        heading = "Rank of the label among the teacher's choices (0 is its first):"
        return "\n".join([heading, "", *(line.rstrip() for line in lines)])


def rank_names(num_bins: int) -> list[str]:
    """Names of the bins of ranks: 0, 1, 2-3, 4-7, ..."""
    edges = [(1 << b >> 1, (1 << b) - 1) for b in range(num_bins)]
    return [str(a) if a == b else f"{a}-{b}" for a, b in edges]


def rank_bins(ranks: npt.NDArray[np.uint32]) -> npt.NDArray[np.int64]:
    """Bin [N] of each rank: how many bits it takes."""
    return np.frexp(ranks.astype(np.float64))[1].astype(np.int64)


def measure_quality(store: TeacherStore, *, quiet: bool = True) -> TeacherQuality:
    """Read the columns of every row once.

    Raises:
        UsageError: no row has a finite answer.
        CorruptError: bytes differ from what was committed.
    """
    parts = []
    fields = [*FIELDS, *(["tail_mass"] if "tail_mass" in store.row_fields else [])]
    with progress("measure", len(store), "examples", quiet=quiet) as bar:
        for start in range(0, len(store), EXAMPLES_AT_ONCE):
            chosen = np.arange(start, min(start + EXAMPLES_AT_ONCE, len(store)))
            store.prefetch(np.arange(start, min(start + 3 * EXAMPLES_AT_ONCE, len(store))), fields)
            parts.append(_measure(store.read(chosen, fields)))
            bar.advance(len(chosen))
    return _total(parts)


def _measure(batch: StoreBatch) -> TeacherQuality:
    kept, logsumexp, label_logit, rank = map(batch.column, FIELDS)
    known, tail = kept > 0, batch.tail_mass
    return TeacherQuality(
        num_rows=int(known.sum()),
        label_log_probability=float(
            (label_logit[known].astype(np.float64) - logsumexp[known]).sum()
        ),
        tail_mass=None if tail is None else float(tail[known].sum(dtype=np.float64)),
        ranks=tuple(np.bincount(rank_bins(rank[known]), minlength=1).tolist()),
    )


def _total(parts: Sequence[TeacherQuality]) -> TeacherQuality:
    num_rows = sum(part.num_rows for part in parts)
    if not num_rows:
        raise UsageError("no row of the store has a finite answer; there is nothing to measure.")
    tails = [part.tail_mass for part in parts]
    ranks = np.zeros(max(len(part.ranks) for part in parts), np.int64)
    for part in parts:
        ranks[: len(part.ranks)] += part.ranks
    return TeacherQuality(
        num_rows=num_rows,
        label_log_probability=sum(part.label_log_probability for part in parts),
        tail_mass=None if None in tails else sum(tail for tail in tails if tail is not None),
        ranks=tuple(ranks.tolist()),
    )
