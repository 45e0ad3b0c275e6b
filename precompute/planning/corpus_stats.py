"""Statistics of a corpus, collected from its stream of examples.

Legend: E examples, T tokens of one example, V vocabulary.
"""

import math
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from caskd.precompute.planning.digest_set import DigestSet
from caskd.store.corpus import TokenizedExample, num_rows, row_labels
from caskd.store.format import STATUSES
from caskd.store.read import TeacherStore

QUANTILES = {"median": 0.5, "p90": 0.9, "p99": 0.99}
READ_EXAMPLES = 1024
PENDING_LABELS = 1 << 16
RESPONSE_BIT = np.uint32(1 << 31)  # unused in token ids: vocabularies are far smaller


class CorpusStats:
    """Counts, lengths, repeats and labels of a stream of examples (36 to 60 bytes an example)."""

    def __init__(self, vocab_size: int) -> None:
        self.statuses: Counter[str] = Counter()
        self.first: dict[str, int] = {}
        self.longest_over_limit: int = 0
        self.num_duplicates = self.duplicate_rows = 0
        self.text_counts: Counter[str] = Counter()
        self.first_refusal = ""
        self._prompt, self._response, self._total = array("I"), array("I"), array("I")
        self._seen = DigestSet()
        self._label_counts = np.zeros(vocab_size, np.int64)
        self._pending: list[npt.NDArray[np.uint32]] = []
        self._num_pending = 0

    def observe(
        self, examples: Iterable[TokenizedExample], *, skip_duplicates: bool
    ) -> Iterator[TokenizedExample]:
        """Count examples and yield them; with `skip_duplicates` a repeat loses its tokens.

        Its status becomes `duplicate`.
        """
        for example in examples:
            repeated = self._is_repeat(example)
            if repeated:
                self._note_first("duplicate", example)
                self.num_duplicates += 1
                self.duplicate_rows += num_rows(example.is_response)
            if repeated and skip_duplicates:
                yield replace(
                    example,
                    token_ids=example.token_ids[:0],
                    is_response=example.is_response[:0],
                    status="duplicate",
                )
                self.statuses["duplicate"] += 1
                continue
            self._count(example)
            yield example

    def _is_repeat(self, example: TokenizedExample) -> bool:
        """Whether an earlier example has the same tokens and the same response."""
        if not len(example.token_ids):
            return False
        marked = example.token_ids | np.where(example.is_response, RESPONSE_BIT, np.uint32(0))
        return not self._seen.add(blake2b(marked.tobytes(), digest_size=16).digest())

    def _note_first(self, status: str, example: TokenizedExample) -> None:
        self.first.setdefault(status, example.source_index)

    def _count(self, example: TokenizedExample) -> None:
        self.statuses[example.status] += 1
        self._note_first(example.status, example)
        self.text_counts["own_borders"] += example.own_border
        self.text_counts["rendered_bos"] += example.rendered_bos
        self.text_counts["kept_unfinished"] += example.kept_unfinished
        self.text_counts["context_turns"] += example.num_context_turns
        self.first_refusal = self.first_refusal or example.reason
        if example.status == "duplicate":  # an existing store skipped it when it was planned
            self.num_duplicates += 1
        full_length = max(example.full_length, len(example.token_ids))
        if full_length:
            self._total.append(full_length)
        if example.status in ("too_long", "truncated"):
            self.longest_over_limit = max(self.longest_over_limit, full_length)
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
        """Return all statistics in JSON types."""
        self._flush()
        counts = self._label_counts
        used = int(np.count_nonzero(counts))
        totals = np.asarray(self._total, np.int64)
        return {
            "examples": dict(self.statuses),
            "first": dict(self.first),
            "longest_over_limit": self.longest_over_limit,
            "text": {**self.text_counts, "first_refusal": self.first_refusal},
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
    """Read the examples of a planned store."""
    store = TeacherStore.open(root, allow_unsealed=True)
    index, tasks = store.index, store.spec.tasks
    for start in range(0, len(store), READ_EXAMPLES):
        chosen = np.arange(start, min(start + READ_EXAMPLES, len(store)))
        batch = store.read(chosen, fields=())
        for position, example in enumerate(chosen):
            part = slice(*batch.token_offsets[position : position + 2])
            yield TokenizedExample(
                batch.token_ids[part],
                batch.is_response[part],
                STATUSES[index.status[example]],
                int(index.source_index[example]),
                tasks[index.task[example]],
            )


def quantiles(lengths: npt.NDArray[np.int64]) -> dict[str, float]:
    """Mean, quantiles and extremes of lengths; all 0 without lengths."""
    if not len(lengths):
        return dict.fromkeys(["min", *QUANTILES, "max", "mean"], 0)
    values = np.quantile(lengths, list(QUANTILES.values()), method="higher")
    return {
        "min": int(lengths.min()),
        **{name: int(value) for name, value in zip(QUANTILES, values, strict=True)},
        "max": int(lengths.max()),
        "mean": round(float(lengths.mean()), 1),
    }


def histogram(lengths: npt.NDArray[np.int64]) -> list[dict[str, int]]:
    """Number of lengths (each >= 1) between powers of two: `from` and `to` inclusive."""
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
    """Draw a histogram as lines of text."""
    largest = max((item["examples"] for item in counts), default=0)
    names = [f"{item['from']:,}-{item['to']:,}" for item in counts]
    name_width = max(map(len, names), default=0)
    return [
        f"{name.rjust(name_width)}  {'#' * math.ceil(width * item['examples'] / largest)} "
        f"{item['examples']:,}"
        for name, item in zip(names, counts, strict=True)
    ]
