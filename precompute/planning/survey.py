"""What a corpus turned out to be, gathered while its examples pass by.

Legend: E examples, T tokens of one example, V vocabulary.
"""

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from caskd.store.corpus import TokenizedExample, num_rows, row_labels
from caskd.store.format import STATUSES
from caskd.store.read import TeacherStore

QUANTILES = {"median": 0.5, "p90": 0.9, "p99": 0.99}
READ_EXAMPLES = 1024
PENDING_LABELS = 1 << 16
TOKEN_BITS = np.uint32(1 << 31)  # free in a token id: vocabularies are far smaller


class Survey:
    """Counts, lengths, repeats and labels of a stream of examples (about 100 bytes an example)."""

    def __init__(self, vocab_size: int) -> None:
        self.statuses: Counter[str] = Counter()
        self.first: dict[str, int] = {}
        self.longest: int = 0
        self.num_duplicates = self.duplicate_rows = 0
        self._prompt, self._response, self._total = array("q"), array("q"), array("q")
        self._seen: set[bytes] = set()
        self._label_counts = np.zeros(vocab_size, np.int64)
        self._pending: list[npt.NDArray[np.uint32]] = []
        self._num_pending = 0

    def watch(
        self, examples: Iterable[TokenizedExample], *, skip_duplicates: bool
    ) -> Iterator[TokenizedExample]:
        """The same examples; with `skip_duplicates` a repeat has no rows and says so."""
        for example in examples:
            repeated = self._is_repeat(example)
            if repeated:
                self._note("duplicate", example)
                self.num_duplicates += 1
                self.duplicate_rows += num_rows(example.is_response)
            if repeated and skip_duplicates:
                nothing = example.token_ids[:0], example.is_response[:0]
                yield replace(
                    example, token_ids=nothing[0], is_response=nothing[1], status="duplicate"
                )
                self.statuses["duplicate"] += 1
                continue
            self._count(example)
            yield example

    def _is_repeat(self, example: TokenizedExample) -> bool:
        """Whether an example with the same tokens and the same response was there before."""
        if not len(example.token_ids):
            return False
        marked = example.token_ids | np.where(example.is_response, TOKEN_BITS, np.uint32(0))
        digest = blake2b(marked.tobytes(), digest_size=16).digest()
        repeated = digest in self._seen
        self._seen.add(digest)
        return repeated

    def _note(self, what: str, example: TokenizedExample) -> None:
        self.first.setdefault(what, example.source_index)

    def _count(self, example: TokenizedExample) -> None:
        self.statuses[example.status] += 1
        self._note(example.status, example)
        if example.status == "duplicate":  # of a store that is there, skipped when it was planned
            self.num_duplicates += 1
        full = max(example.full_length, len(example.token_ids))
        if full:
            self._total.append(full)
        if example.status in ("too_long", "truncated"):
            self.longest = max(self.longest, full)
        if len(example.token_ids):
            num_response = int(np.count_nonzero(example.is_response))
            self._prompt.append(len(example.token_ids) - num_response)
            self._response.append(num_response)
            self._pending.append(row_labels(example.token_ids, example.is_response))
            self._num_pending += len(self._pending[-1])
            if self._num_pending >= PENDING_LABELS:
                self._flush()

    def _flush(self) -> None:
        if self._pending:
            labels = np.concatenate(self._pending)
            self._label_counts += np.bincount(labels, minlength=len(self._label_counts))
            self._pending, self._num_pending = [], 0

    def facts(self) -> dict[str, Any]:
        """Everything that was found, in JSON types."""
        self._flush()
        counts = self._label_counts
        used = int(np.count_nonzero(counts))
        totals = np.asarray(self._total, np.int64)
        return {
            "examples": dict(self.statuses),
            "first": dict(self.first),
            "longest_over_limit": self.longest,
            "duplicates": {"examples": self.num_duplicates, "rows": self.duplicate_rows},
            "labels": {
                "distinct": used,
                "share_of_vocabulary": used / max(len(counts), 1),
                "share_of_top_100": float(np.sort(counts)[-100:].sum() / max(counts.sum(), 1)),
            },
            "lengths": {
                "prompt": quantiles(np.asarray(self._prompt, np.int64)),
                "response": quantiles(np.asarray(self._response, np.int64)),
                "total": quantiles(totals),
            },
            "histogram": histogram(totals),
        }


def planned_examples(root: Path) -> Iterator[TokenizedExample]:
    """The examples of a planned store, as they are in it."""
    store = TeacherStore.open(root, allow_unsealed=True)
    index, tasks = store.index, store.spec.tasks
    for start in range(0, len(store), READ_EXAMPLES):
        chosen = np.arange(start, min(start + READ_EXAMPLES, len(store)))
        batch = store.read(chosen, fields=())
        for place, example in enumerate(chosen):
            part = slice(*batch.token_offsets[place : place + 2])
            yield TokenizedExample(
                batch.token_ids[part],
                batch.is_response[part],
                STATUSES[index.status[example]],
                int(index.source_index[example]),
                tasks[index.task[example]],
            )


def quantiles(lengths: npt.NDArray[np.int64]) -> dict[str, float]:
    """Mean, quantiles and extremes of lengths; all 0 where there are none."""
    if not len(lengths):
        return dict.fromkeys(["min", *QUANTILES, "max", "mean"], 0)
    found = np.quantile(lengths, list(QUANTILES.values()), method="higher")
    return {
        "min": int(lengths.min()),
        **{name: int(value) for name, value in zip(QUANTILES, found, strict=True)},
        "max": int(lengths.max()),
        "mean": round(float(lengths.mean()), 1),
    }


def histogram(lengths: npt.NDArray[np.int64]) -> list[dict[str, int]]:
    """How many lengths (each >= 1) lie between powers of two: `from` and `to` inclusive."""
    if not len(lengths):
        return []
    # 1, 2, 3-4, 5-8, ...: bin b holds 2^(b-1) < length <= 2^b.
    bins = np.bincount(np.ceil(np.log2(lengths)).astype(np.int64))
    first = int(np.flatnonzero(bins)[0])
    return [
        {"from": (1 << b >> 1) + 1 if b else 1, "to": 1 << b, "examples": int(bins[b])}
        for b in range(first, len(bins))
    ]


def bars(counts: Sequence[Mapping[str, int]], width: int = 40) -> list[str]:
    """A histogram as lines of text."""
    most = max((item["examples"] for item in counts), default=0)
    names = [f"{item['from']:,}-{item['to']:,}" for item in counts]
    wide = max(map(len, names), default=0)
    return [
        f"{name.rjust(wide)}  {'#' * -(-width * item['examples'] // most)} {item['examples']:,}"
        for name, item in zip(names, counts, strict=True)
    ]
