"""Teacher quality on the labels of a store, measured in one pass over its columns.

Legend: N rows of a batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

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
    """Sums over the rows with finite teacher logits.

    Attributes:
        num_rows: number of these rows.
        label_log_probability: sum of log p(label) in nats; None where not every label's
            probability is known.
        tail_mass: sum of the probability outside the top-k; None for a sampled store, and where it
            is not known.
        ranks: number of rows per bin of the label's rank: 0, 1, 2-3, 4-7, 8-15, ..., up to the
            last bin that is not empty; empty where ranks are not known.
        rank_limit: ranks from this one on are stored as this number; None if ranks are exact.
    """

    num_rows: int
    label_log_probability: float | None
    tail_mass: float | None
    ranks: tuple[int, ...]
    rank_limit: int | None = None

    @property
    def accuracy(self) -> float | None:
        """Fraction of rows whose label is the teacher's argmax; None where that is not known."""
        return self.ranks[0] / self.num_rows if self.ranks else None

    @property
    def perplexity(self) -> float | None:
        """exp of the mean negative log-probability of the label; None where it is not known."""
        if self.label_log_probability is None:
            return None
        return float(np.exp(-self.label_log_probability / self.num_rows))

    @property
    def mean_tail_mass(self) -> float | None:
        """Mean probability outside the top-k; None for a sampled store."""
        return None if self.tail_mass is None else self.tail_mass / self.num_rows

    def rows(self) -> dict[str, str]:
        """The measurements as rows of a table."""
        figures = {
            "rows measured": f"{self.num_rows:,}",
            "teacher accuracy on the labels": _shown(self.accuracy, ".2%", "argmax"),
            "teacher perplexity on the labels": _shown(self.perplexity, ",.3f", "label"),
        }
        if self.mean_tail_mass is not None:
            figures["mean tail mass (probability outside the top-k)"] = f"{self.mean_tail_mass:.5f}"
        return figures

    def rank_names(self) -> list[str]:
        """Labels of the bins in `ranks`."""
        names = rank_names(len(self.ranks))
        if self.rank_limit is not None:
            last = int(rank_bins(np.array([self.rank_limit], np.uint32))[0])
            names[last:] = [f"{1 << last >> 1} or more" for _ in names[last:]]
        return names

    def histogram(self) -> str:
        """Histogram of the label's rank in the teacher's order, as a Markdown code block."""
        if not self.ranks:
            return "Rank of the label: not known, because capture.argmax is unknown."
        names = self.rank_names()
        width, most = max(map(len, names)), max(self.ranks)
        lines = [
            f"    {name:>{width}}  {count / self.num_rows:7.2%}  " + "#" * (WIDTH * count // most)
            for name, count in zip(names, self.ranks, strict=True)
        ]
        heading = "Rank of the label in the teacher's order (0: the argmax):"
        return "\n".join([heading, "", *(line.rstrip() for line in lines)])


def _shown(value: float | None, style: str, field: str) -> str:
    return f"not known (capture.{field})" if value is None else format(value, style)


def rank_names(num_bins: int) -> list[str]:
    """Labels of the first `num_bins` rank bins: 0, 1, 2-3, 4-7, ..."""
    edges = [(1 << b >> 1, (1 << b) - 1) for b in range(num_bins)]
    return [str(a) if a == b else f"{a}-{b}" for a, b in edges]


def rank_bins(ranks: npt.NDArray[np.uint32]) -> npt.NDArray[np.int64]:
    """Bin [N] of each rank: the number of its bits."""
    return np.frexp(ranks.astype(np.float64))[1].astype(np.int64)


def measure_quality(store: TeacherStore, *, quiet: bool = True) -> TeacherQuality:
    """Measure a store's teacher by reading the columns of every row once.

    Raises:
        UsageError: no row has finite teacher logits.
        CorruptError: bytes differ from the commit records.
    """
    parts = []
    known_as = store.spec.capture_fields
    fields = [*FIELDS, *(["tail_mass"] if "tail_mass" in store.row_fields else [])]
    with progress("measure", len(store), "examples", quiet=quiet) as bar:
        for start in range(0, len(store), EXAMPLES_AT_ONCE):
            chosen = np.arange(start, min(start + EXAMPLES_AT_ONCE, len(store)))
            store.prefetch(np.arange(start, min(start + 3 * EXAMPLES_AT_ONCE, len(store))), fields)
            parts.append(_measure(store.read(chosen, fields)))
            bar.advance(len(chosen))
    total = _total(parts)
    return replace(
        total,
        label_log_probability=None
        if known_as["label"] == "within_topk"
        else total.label_log_probability,
        tail_mass=None if known_as["tail"] == "unknown" else total.tail_mass,
        ranks=() if known_as["argmax"] == "unknown" else total.ranks,
        rank_limit=store.spec.num_cells if known_as["rank"] == "capped" else None,
    )


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
        raise UsageError(
            "store: no row has finite teacher logits; expected one or more; run caskd precompute "
            "with a new --store"
        )
    tails = [part.tail_mass for part in parts]
    ranks = np.zeros(max(len(part.ranks) for part in parts), np.int64)
    for part in parts:
        ranks[: len(part.ranks)] += part.ranks
    return TeacherQuality(
        num_rows=num_rows,
        label_log_probability=sum(part.label_log_probability or 0.0 for part in parts),
        tail_mass=None if None in tails else sum(tail for tail in tails if tail is not None),
        ranks=tuple(ranks.tolist()),
    )
