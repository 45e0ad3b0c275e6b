"""Differences between two stores: identity, geometry, texts and rows.

Legend: N rows of a block of examples.
"""

from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from caskd.store.format import identity_differences, unknown_fields
from caskd.store.io import escape_control, progress
from caskd.store.read import StoreBatch, TeacherStore

EXAMPLES_AT_ONCE = 256
_GEOMETRY = ("num_examples", "num_tokens", "num_rows", "num_shards", "shard_rows", "tasks")


@dataclass
class StoreDiff:
    """Differences between two stores, A and B.

    Attributes:
        identity: (dotted field, A's value, B's value).
        geometry: (name, A's value, B's value) of counts and sizes.
        num_texts: examples whose tokens or mask differ; their rows are not compared.
        first_text: index of the first such example.
        num_rows: rows compared.
        rows: number of differing rows per field.
        largest: largest absolute difference of each floating-point field.
        first_row: (example, row within it) of the first differing row.
    """

    identity: list[tuple[str, Any, Any]] = field(default_factory=list)
    geometry: list[tuple[str, Any, Any]] = field(default_factory=list)
    num_texts: int = 0
    first_text: int | None = None
    num_rows: int = 0
    rows: Counter[str] = field(default_factory=Counter)
    largest: dict[str, float] = field(default_factory=dict)
    first_row: tuple[int, int] | None = None

    @property
    def same(self) -> bool:
        """Whether the stores are equal."""
        return not (self.identity or self.geometry or self.num_texts or self.rows)


def diff_stores(a: str | Path, b: str | Path, *, quiet: bool = True) -> StoreDiff:
    """Compare two sealed stores.

    Raises:
        StoreError: a store is missing, unsealed or damaged.
    """
    store_a, store_b = TeacherStore.open(a), TeacherStore.open(b)
    found = StoreDiff()
    if store_a.digest == store_b.digest:
        found.num_rows = store_a.spec.num_rows
        return found
    spec_a, spec_b = store_a.spec, store_b.spec
    found.identity = list(identity_differences(spec_a.identity, spec_b.identity))
    found.geometry = [
        (name, getattr(spec_a, name), getattr(spec_b, name))
        for name in _GEOMETRY
        if getattr(spec_a, name) != getattr(spec_b, name)
    ]
    num_examples = min(len(store_a), len(store_b))
    with progress("diff", num_examples, "examples", quiet=quiet) as bar:
        for start in range(0, num_examples, EXAMPLES_AT_ONCE):
            examples = np.arange(start, min(start + EXAMPLES_AT_ONCE, num_examples))
            _compare(store_a, store_b, examples, found)
            bar.advance(len(examples))
    return found


def _compare(a: TeacherStore, b: TeacherStore, examples: Any, found: StoreDiff) -> None:
    """Compare a block of examples: first the texts, then the rows of equal texts."""
    texts = a.read(examples, fields=()), b.read(examples, fields=())
    same = np.array([_text(texts[0], i) == _text(texts[1], i) for i in range(len(examples))])
    found.num_texts += int((~same).sum())
    if found.first_text is None and not same.all():
        found.first_text = int(examples[~same][0])
    if not same.any():
        return
    batch_a, batch_b = a.read(examples[same]), b.read(examples[same])
    known_a, known_b = a.spec.capture_fields, b.spec.capture_fields
    unknown = {*unknown_fields(known_a), *unknown_fields(known_b)}
    if known_a["values"] != known_b["values"]:
        batch_a, batch_b = map(_log_probabilities, (batch_a, batch_b))
    found.num_rows += batch_a.num_rows
    differing = np.zeros(batch_a.num_rows, bool)
    # A top-k and a sampled store share some fields only; their identities differ in `kind`.
    for name in (n for n in a.row_fields if n in b.row_fields and n not in unknown):
        differing |= _compare_field(batch_a, batch_b, name, found)
    if found.first_row is None and differing.any():
        row = int(np.flatnonzero(differing)[0])
        index = int(np.searchsorted(batch_a.row_offsets, row, side="right")) - 1
        first_of_example = int(batch_a.row_offsets[index])
        found.first_row = int(batch_a.example_indices[index]), row - first_of_example


def _log_probabilities(batch: StoreBatch) -> StoreBatch:
    """The batch with log-probabilities in place of logits, and a log-sum-exp of 0."""
    total = batch.column("logsumexp")
    changed = {"label_logit": batch.column("label_logit") - total, "logsumexp": 0 * total}
    if batch.topk_logits is not None:
        changed["topk_logits"] = batch.topk_logits - total[:, None]
    return replace(batch, **changed)


def _text(batch: StoreBatch, i: int) -> tuple[bytes, bytes]:
    own = slice(int(batch.token_offsets[i]), int(batch.token_offsets[i + 1]))
    return batch.token_ids[own].tobytes(), batch.is_response[own].tobytes()


def _compare_field(a: StoreBatch, b: StoreBatch, name: str, found: StoreDiff) -> Any:
    """Mask [N] of rows that differ in a field; adds their number to `found`."""
    x, y = a.column(name), b.column(name)
    if x.shape != y.shape:  # different k, which the identities show
        k = min(x.shape[1], y.shape[1])
        x, y = x[:, :k], y[:, :k]
    unequal = x != y
    rows = unequal.any(axis=1) if unequal.ndim == 2 else unequal
    if rows.any():
        found.rows[name] += int(rows.sum())
        if x.dtype.kind == "f":
            with np.errstate(invalid="ignore"):
                gaps = np.abs(x[unequal].astype(np.float64) - y[unequal])
            largest = float(gaps[np.isfinite(gaps)].max(initial=0.0))
            found.largest[name] = max(found.largest.get(name, 0.0), largest)
    return rows


def diff_lines(found: StoreDiff) -> list[str]:
    """The differences as lines of text."""
    lines = [
        escape_control(f"{name}: {a!r} in A, {b!r} in B")
        for name, a, b in (*found.identity, *found.geometry)
    ]
    if found.num_texts:
        lines.append(
            f"texts: {found.num_texts:,} examples differ, first example {found.first_text}"
        )
    for name, count in found.rows.items():
        gap = f", by up to {found.largest[name]:.3g}" if name in found.largest else ""
        lines.append(f"{name}: {count:,} of {found.num_rows:,} rows differ{gap}")
    if found.first_row:
        lines.append("first differing row: example {}, row {}".format(*found.first_row))
    return lines or [f"no difference: {found.num_rows:,} rows"]
