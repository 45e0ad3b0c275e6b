"""In what two stores differ: identity, geometry, and which rows.

Legend: N rows of some examples.
"""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from caskd.store.format import identity_differences
from caskd.store.io import escape_control, progress
from caskd.store.read import StoreBatch, TeacherStore

EXAMPLES_AT_ONCE = 256
_GEOMETRY = ("num_examples", "num_tokens", "num_rows", "num_shards", "shard_rows", "tasks")


@dataclass
class StoreDiff:
    """What differs between two stores, A and B.

    Attributes:
        identity: (dotted field, A's value, B's value).
        geometry: the same of counts and sizes.
        num_texts: examples whose tokens or mask differ; their rows cannot be compared.
        first_text: the first of them.
        num_rows: rows compared.
        rows: rows that differ, by field.
        largest: largest absolute difference of each field that has a scale.
        first_row: (example, row within it) of the first row that differs.
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
        """Whether nothing differs."""
        return not (self.identity or self.geometry or self.num_texts or self.rows)


def diff_stores(one: str | Path, two: str | Path, *, quiet: bool = True) -> StoreDiff:
    """Compare two sealed stores.

    Raises:
        StoreError: one of them is missing, unsealed or damaged.
    """
    a, b = TeacherStore.open(one), TeacherStore.open(two)
    found = StoreDiff()
    if a.digest == b.digest:
        found.num_rows = a.spec.num_rows
        return found
    found.identity = list(identity_differences(a.spec.identity, b.spec.identity))
    found.geometry = [
        (name, getattr(a.spec, name), getattr(b.spec, name))
        for name in _GEOMETRY
        if getattr(a.spec, name) != getattr(b.spec, name)
    ]
    num_examples = min(len(a), len(b))
    with progress("diff", num_examples, "examples", quiet=quiet) as bar:
        for start in range(0, num_examples, EXAMPLES_AT_ONCE):
            examples = np.arange(start, min(start + EXAMPLES_AT_ONCE, num_examples))
            _compare(a, b, examples, found)
            bar.advance(len(examples))
    return found


def _compare(a: TeacherStore, b: TeacherStore, examples: Any, found: StoreDiff) -> None:
    """Compare some examples: their texts, then the rows of those with the same text."""
    texts = a.read(examples, fields=()), b.read(examples, fields=())
    same = np.array([_text(texts[0], i) == _text(texts[1], i) for i in range(len(examples))])
    found.num_texts += int((~same).sum())
    if found.first_text is None and not same.all():
        found.first_text = int(examples[~same][0])
    if not same.any():
        return
    one, two = a.read(examples[same]), b.read(examples[same])
    found.num_rows += one.num_rows
    differing = np.zeros(one.num_rows, bool)
    # Two kinds of store share the columns only; identity says that they differ.
    for name in (name for name in a.row_fields if name in b.row_fields):
        differing |= _compare_field(one, two, name, found)
    if found.first_row is None and differing.any():
        row = int(np.flatnonzero(differing)[0])
        place = int(np.searchsorted(one.row_offsets, row, side="right")) - 1
        found.first_row = int(one.example_indices[place]), row - int(one.row_offsets[place])


def _text(batch: StoreBatch, i: int) -> tuple[bytes, bytes]:
    own = slice(int(batch.token_offsets[i]), int(batch.token_offsets[i + 1]))
    return batch.token_ids[own].tobytes(), batch.is_response[own].tobytes()


def _compare_field(one: StoreBatch, two: StoreBatch, name: str, found: StoreDiff) -> Any:
    """Which rows differ in a field, [N]; counts them in `found`."""
    x, y = one.column(name), two.column(name)
    if x.shape != y.shape:  # another k: identity names it
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
    """The differences, for a person."""
    lines = [
        escape_control(f"{name}: {a!r} in A, {b!r} in B")
        for name, a, b in (*found.identity, *found.geometry)
    ]
    if found.num_texts:
        lines.append(f"texts: {found.num_texts:,} examples differ, first {found.first_text}")
    for name, count in found.rows.items():
        gap = f", by up to {found.largest[name]:.3g}" if name in found.largest else ""
        lines.append(f"{name}: {count:,} of {found.num_rows:,} rows differ{gap}")
    if found.first_row:
        lines.append("first row that differs: example {}, row {}".format(*found.first_row))
    return lines or [f"the same: {found.num_rows:,} rows"]
