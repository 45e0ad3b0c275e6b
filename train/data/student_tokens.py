"""A store's examples in the student's own tokens, aligned with the teacher's rows by their bytes.

Legend: T teacher tokens and S student tokens of one example, R teacher rows, N student rows,
C spans.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from caskd.store import StoreBatch, TeacherStore
from caskd.store.corpus import (
    ChatOptions,
    Columns,
    Record,
    TextOptions,
    TokenizedExample,
    special_tokens,
    token_bytes,
    tokenize_examples,
)
from caskd.train.data.spans import NO_SPAN, IntArray, align_tokens

Mask = npt.NDArray[np.uint8]

END = b"\xff"
"""Stands for the token that ends a reply. No text in UTF-8 has this byte."""

_NO_LIMIT = 1 << 40


@dataclass(frozen=True, eq=False)
class AlignedExample:
    """An example in the student's tokens, and the spans of its rows."""

    token_ids: npt.NDArray[np.uint32]
    """[S]."""
    is_response: Mask
    """[S]."""
    student_span: IntArray
    """[N] span of each student row, in [0, C); NO_SPAN where the row belongs to none."""
    teacher_span: IntArray
    """[R] span of each teacher row, likewise."""
    num_spans: int
    """C; each has at least one row of both models."""
    num_bytes: int
    """Bytes of the replies."""


class StudentTokens:
    """Tokenises examples of one store with another tokenizer.

    Args:
        tokenizer: the student's.
        store: read for its vocabulary and special tokens.
        records: the corpus record of a `source_index`; None renders prompt and response from the
            store's own bytes.
        columns: of the records.
        chat: how the student sees conversations.
    """

    def __init__(
        self,
        tokenizer: Any,
        store: TeacherStore,
        records: Callable[[int], Record] | None = None,
        columns: Columns | None = None,
        chat: ChatOptions | None = None,
    ) -> None:
        self._tokenizer, self._store = tokenizer, store
        self._records, self._columns = records, columns or Columns(kind="prompt")
        self._chat = chat or ChatOptions()
        self._own = Vocabulary(token_bytes(tokenizer), special_tokens(tokenizer)["special_ids"])

    @cached_property
    def _teacher(self) -> "Vocabulary":
        known = self._store.spec.special_tokens or {}
        return Vocabulary(self._store.vocab, known.get("special_ids", ()))

    def align(self, batch: StoreBatch) -> list[AlignedExample | None]:
        """The examples of a batch; None for one whose replies have other bytes.

        Args:
            batch: with the field num_kept.
        """
        parts = [_part(batch, number) for number in range(len(batch.example_indices))]
        num_kept = np.split(batch.column("num_kept"), batch.row_offsets[1:-1])
        tokenized = self._tokenized(batch, parts)
        return [
            None if own is None else self._aligned(*part, own, kept > 0)
            for part, own, kept in zip(parts, tokenized, num_kept, strict=True)
        ]

    def _aligned(
        self,
        ids: npt.NDArray[np.uint32],
        mask: Mask,
        own: TokenizedExample,
        has_teacher: npt.NDArray[np.bool_],
    ) -> AlignedExample | None:
        theirs = self._teacher.replies(ids, mask)
        ours = self._own.replies(own.token_ids, own.is_response)
        sizes = _same_bytes(theirs, ours)
        spans = None if sizes is None else align_tokens(*sizes)
        if spans is None:
            return None
        # A response token at position 0 has no row, on either side, and some rows have no teacher.
        first = int(mask[0]), int(own.is_response[0])
        teacher, student = spans.of_teacher[first[0] :], spans.of_student[first[1] :]
        dropped = [
            spans.of_teacher[: first[0]],
            spans.of_student[: first[1]],
            teacher[~has_teacher],
        ]
        good = np.ones(spans.count + 1, bool)
        good[np.concatenate(dropped)] = False
        good[NO_SPAN] = False
        number = np.where(good, np.cumsum(good) - 1, NO_SPAN)
        return AlignedExample(
            own.token_ids,
            own.is_response,
            number[student],
            number[teacher],
            num_spans=int(good.sum()),
            num_bytes=sum(
                min(len(text.removesuffix(END)) for text in texts)
                for texts in zip(theirs.texts, ours.texts, strict=True)
            ),
        )

    def _tokenized(
        self, batch: StoreBatch, parts: Sequence[tuple[npt.NDArray[np.uint32], Mask]]
    ) -> list[TokenizedExample | None]:
        """The student's tokens of each example; None where its text cannot be rendered."""
        found: list[TokenizedExample | None] = [None] * len(parts)
        for finished in (True, False):
            chosen, records = [], []
            for number, (ids, mask) in enumerate(parts):
                if self._teacher.is_finished(ids, mask) != finished:
                    continue
                record = self._record(int(batch.example_indices[number]), ids, mask)
                if record is not None:
                    chosen.append(number)
                    records.append(record)
            if records:
                options = TextOptions(eos=finished, max_length=_NO_LIMIT, chat=self._chat)
                made = tokenize_examples(self._tokenizer, records, self._columns, options, 0)
                for number, example in zip(chosen, made, strict=True):
                    found[number] = example if example.status == "ok" else None
        return found

    def _record(self, index: int, ids: npt.NDArray[np.uint32], mask: Mask) -> Record | None:
        if self._records is not None:
            return self._records(int(self._store.index.source_index[index]))
        start = int(np.argmax(mask))
        leading = start > 0 and int(ids[0]) in self._teacher.special
        given = b"".join(self._teacher.tokens[id_] for id_ in ids[int(leading) : start])
        reply = self._teacher.replies(ids, mask).texts[0].removesuffix(END)
        try:
            return {"prompt": given.decode(), "response": reply.decode()}
        except UnicodeDecodeError:
            return None


@dataclass(frozen=True, eq=False)
class Replies:
    """The replies of an example: their bytes, and the bytes of each response token."""

    texts: list[bytes]
    """One for each run of response tokens. One that ends with a special token ends with END."""
    sizes: list[IntArray]
    """Bytes of the tokens of each run. Special tokens have none, but the end of a reply has one."""


class Vocabulary:
    """Bytes of tokens, and which of them are markup.

    Args:
        tokens: bytes of each id.
        special: ids that stand for no text.
    """

    def __init__(self, tokens: Sequence[bytes], special: Sequence[int]) -> None:
        self.tokens, self.special = tokens, frozenset(special)

    def is_finished(self, ids: npt.NDArray[np.uint32], mask: Mask) -> bool:
        """Whether the last response token is a special one."""
        return int(ids[np.flatnonzero(mask)[-1]]) in self.special

    def replies(self, ids: npt.NDArray[np.uint32], mask: Mask) -> Replies:
        """The replies of an example."""
        edges = np.flatnonzero(np.diff(mask, prepend=0, append=0))
        texts, sizes = [], []
        for start, stop in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
            run = ids[start:stop].tolist()
            parts = [b"" if id_ in self.special else self.tokens[id_] for id_ in run]
            if run[-1] in self.special:
                parts[-1] = END
            texts.append(b"".join(parts))
            sizes.append(np.array([len(part) for part in parts], np.int64))
        return Replies(texts, sizes)


def _part(batch: StoreBatch, number: int) -> tuple[npt.NDArray[np.uint32], Mask]:
    where = slice(batch.token_offsets[number], batch.token_offsets[number + 1])
    return batch.token_ids[where], batch.is_response[where]


def _same_bytes(theirs: Replies, ours: Replies) -> tuple[IntArray, IntArray] | None:
    """Sizes of all response tokens of both sides; None if a reply has other bytes.

    A space that a tokenizer inserts before a text is no byte of the reply.
    """
    if len(theirs.texts) != len(ours.texts):
        return None
    for number, (their, our) in enumerate(zip(theirs.texts, ours.texts, strict=True)):
        for text, other, side in ((their, our, theirs), (our, their, ours)):
            if text != other and text == b" " + other:
                side.sizes[number][0] -= 1
                break
        else:
            if their != our:
                return None
    return np.concatenate(theirs.sizes), np.concatenate(ours.sizes)
