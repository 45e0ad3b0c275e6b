"""Marked tokens of a store: spans of characters in its corpus, as rows.

A record of the corpus may have a column `marks`: a list of [start, end) in characters of its
response, or of its text. A row is marked if the bytes of its label share a byte with a span.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Any

import numpy as np
import numpy.typing as npt

from caskd.store import StoreBatch, TeacherStore
from caskd.store.corpus import Columns, Record, column_value, decide_columns, read_records
from caskd.store.errors import IdentityError, UsageError
from caskd.store.io import value_text

Flags = npt.NDArray[np.bool_]
COLUMN = "marks"
_READ_TOGETHER = 512


@dataclass(frozen=True, eq=False)
class Marks:
    """Which rows of a store are marked."""

    flags: Flags
    """Of all rows, example by example."""
    starts: npt.NDArray[np.int64]
    """First row of each example."""
    digest: str
    """sha256 of the flags."""

    def rows(self, batch: StoreBatch) -> Flags:
        """[N] of the rows of some examples."""
        counts = np.diff(batch.row_offsets).tolist()
        found = zip(self.starts[batch.example_indices].tolist(), counts, strict=True)
        return np.concatenate([self.flags[start : start + count] for start, count in found])

    @property
    def share(self) -> float:
        """Marked rows among all."""
        return float(self.flags.mean())


def read_marks(stores: Sequence[TeacherStore], files: Sequence[str]) -> Marks:
    """Find the marked rows of a store.

    Args:
        stores: of the run; only one is supported.
        files: the corpus of the store, with a column `marks`.

    Raises:
        UsageError: there are several stores, the store holds conversations, or a mark is wrong.
        IdentityError: a record is not the one that the store was captured from.
    """
    flag = f"--data {' '.join(files)}"
    if len(stores) != 1:
        raise UsageError(
            f"{flag}: {len(stores)} stores were given with it; expected one, whose corpus has the "
            "marks; pass one --store"
        )
    store = stores[0]
    kind = store.spec.identity["text"]["kind"]
    if kind == "messages":
        raise UsageError(
            f"--store {store.name}: holds conversations, whose template changes characters; "
            "expected prompts and responses, or texts; pass another store, or --delegate without "
            "fact-"
        )
    if store.spec.special_tokens is None:
        raise UsageError(
            f"--store {store.name}: an older version wrote it, without the teacher's special "
            "tokens; expected identity.vocabulary.special_ids; capture it again"
        )
    special = set(store.spec.special_tokens.get("special_ids", ()))
    sizes = [b"" if i in special else token for i, token in enumerate(store.vocab)]
    records = list(read_records(files))
    counts = store.row_counts()
    starts = np.concatenate(([0], np.cumsum(counts, dtype=np.int64)))
    flags = np.zeros(int(starts[-1]), dtype=bool)
    examples = np.flatnonzero(counts)
    for first in range(0, len(examples), _READ_TOGETHER):
        chosen = examples[first : first + _READ_TOGETHER]
        batch = store.read(chosen, ())
        for place, example in enumerate(chosen.tolist()):
            tokens = slice(*batch.token_offsets[place : place + 2].tolist())
            mask = batch.is_response[tokens].astype(bool)
            parts = [sizes[i] for i in batch.token_ids[tokens][mask].tolist()]
            found = _marked(records, int(store.index.source_index[example]), kind, parts, flag)
            # A response token at position 0 has no row.
            flags[starts[example] : starts[example + 1]] = found[int(mask[0]) :]
    if not flags.any():
        raise UsageError(
            f"{flag}: no token of the store is marked; expected a column {COLUMN!r} with "
            "[start, end) in characters of each response; add it, or pass --delegate without fact-"
        )
    return Marks(flags, starts[:-1], hashlib.sha256(flags.tobytes()).hexdigest())


def _marked(
    records: Sequence[Record], source: int, kind: str, parts: Sequence[bytes], flag: str
) -> Flags:
    """Which tokens of a response or text are marked."""
    if source >= len(records):
        raise IdentityError(
            f"{flag}: {len(records):,} records, and the store has one numbered {source:,}; "
            "expected the corpus that was captured; pass its files in the same order"
        )
    record = records[source]
    columns = decide_columns(record, Columns())
    role = "text" if kind == "text" else "response"
    text = str(column_value(record, columns, role))
    whole, body = text.encode(), b"".join(parts)
    # Some tokenizers insert a space before a text, and a cut example is its beginning.
    shift = 0 if whole.startswith(body) else 1
    if not whole.startswith(body[shift:]) or (shift and not body.startswith(b" ")):
        raise IdentityError(
            f"{flag}: record {source:,} is not the text of the store's tokens, or the teacher's "
            "tokenizer changes its characters; expected the corpus that was captured and a "
            "tokenizer that keeps its bytes; pass that corpus, or --delegate without fact-"
        )
    covered = np.concatenate(([0], np.cumsum(_covered(record.get(COLUMN), text, source, flag))))
    ends = np.cumsum([0, *map(len, parts)]) - shift
    ends = np.clip(ends, 0, len(whole))
    return np.asarray(covered[ends[1:]] > covered[ends[:-1]])


def _covered(marks: Any, text: str, source: int, flag: str) -> npt.NDArray[np.int64]:
    """1 for each byte of the text in a span."""
    places = np.cumsum([0, *(len(char.encode()) for char in text)])
    covered = np.zeros(int(places[-1]), dtype=np.int64)
    if not isinstance(marks, list | NoneType):
        raise UsageError(
            f"{flag}: record {source:,} has the marks {value_text(marks)}; expected a list of "
            "[start, end); fix that record"
        )
    for mark in marks or []:
        pair = mark if isinstance(mark, list) and len(mark) == 2 else [None, None]
        start, end = pair
        if not (type(start) is int and type(end) is int and 0 <= start < end <= len(text)):
            raise UsageError(
                f"{flag}: record {source:,} has the mark {str(mark)[:60]}; expected "
                f"[start, end) within its {len(text):,} characters; fix that record"
            )
        covered[places[start] : places[end]] = 1
    return covered
