"""A store's examples in the student's own tokens, aligned with the teacher's rows by their bytes.

Legend: T teacher tokens and S student tokens of one example, R teacher rows, N student rows,
C spans.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
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
from caskd.store.spacing import thin
from caskd.train.data.mapped_topk import shared_ids
from caskd.train.data.spans import (
    END,
    NO_SPAN,
    IntArray,
    Mask,
    Vocabulary,
    align_tokens,
    same_bytes,
)

_NO_LIMIT = 1 << 40
_SAMPLE = 64


class LeftOut(Enum):
    """Why an example has no spans."""

    OTHER_BYTES = "other_bytes"
    """Its replies have other bytes in the student's tokens."""
    TOO_LONG = "too_long"
    """It has more tokens than the student has positions."""


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
    """Bytes of the student's tokens of the replies."""

    def one_to_one(self) -> tuple[IntArray, IntArray]:
        """The rows of the teacher and of the student of each span that is one token of both."""
        sides = self.teacher_span, self.student_span
        counts = (np.bincount(side[side >= 0], minlength=self.num_spans) for side in sides)
        single = np.append(np.logical_and(*(count == 1 for count in counts)), False)
        teacher, student = (np.flatnonzero(single[side]) for side in sides)
        return teacher, student


class StudentTokens:
    """Tokenises examples of one store with another tokenizer.

    Args:
        tokenizer: the student's.
        store: read for its vocabulary and special tokens.
        records: the corpus record of a `source_index`; None renders prompt and response from the
            store's own bytes.
        columns: of the records.
        chat: how the student sees conversations.
        max_length: positions that the student has; None: no limit.
        own: `own_vocabulary` of the tokenizer, where it is known.

    Attributes:
        max_length: of the student's tokens of an example; longer ones are left out.
    """

    def __init__(
        self,
        tokenizer: Any,
        store: TeacherStore,
        records: Callable[[int], Record] | None = None,
        columns: Columns | None = None,
        chat: ChatOptions | None = None,
        max_length: int | None = None,
        own: Vocabulary | None = None,
    ) -> None:
        self._tokenizer, self._store = tokenizer, store
        self._records, self._columns = records, columns or Columns(kind="prompt")
        self._chat, self.max_length = chat or ChatOptions(), max_length or _NO_LIMIT
        self._own = own or own_vocabulary(tokenizer)

    def is_of(self, tokenizer: Any) -> bool:
        """Whether a tokenizer has these tokens."""
        return own_vocabulary(tokenizer).digest == self._own.digest

    @property
    def shares_vocabulary(self) -> bool:
        """Whether the student's tokens are the teacher's."""
        return self._own.digest == self._store.spec.vocab_digest

    @cached_property
    def _teacher(self) -> Vocabulary:
        known = self._store.spec.special_tokens or {}
        return Vocabulary(self._store.vocab, known.get("special_ids", ()))

    @cached_property
    def _inserts_space(self) -> bool:
        """Whether the teacher's tokenizer inserts a space before a text: all of a sample have one.

        The store has the tokens, not the tokenizer. Where the texts themselves all start with a
        space, the student sees them without it.
        """
        parts = _parts(self._sample)
        texts = [self._teacher.joined(self._without_bos(ids, mask)) for ids, mask in parts]
        return all(text.startswith(b" ") for text in texts)

    @cached_property
    def _sample(self) -> StoreBatch:
        whole = np.flatnonzero(self._store.row_counts())
        return self._store.read(whole[thin(len(whole), _SAMPLE)], ())

    @cached_property
    def shared_ids(self) -> IntArray:
        """The student's id for each id of the teacher; NO_ID where the student has no such token.

        A byte that has a token beside the byte fallback is written as that token.
        """
        named = self._tokenizer.get_vocab()
        fallback = {named.get(f"<0x{byte:02X}>") for byte in range(256)}
        sides = ((side.tokens, side.special) for side in (self._teacher, self._own))
        return shared_ids(*sides, last_choice=fallback, ends=self._ends())

    def _ends(self) -> dict[int, int]:
        """The student's token for each token that ends a reply of the teacher, in a sample."""
        parts = _parts(self._sample)
        found: dict[int, int] = {}
        for part, own in zip(parts, self._tokenized(self._sample, parts), strict=True):
            if isinstance(own, LeftOut):
                continue
            theirs = self._teacher.replies(*part).ends
            ours = self._own.replies(own.token_ids, own.is_response).ends
            if len(theirs) == len(ours):
                for their, our in zip(theirs, ours, strict=True):
                    if their in self._teacher.special and our in self._own.special:
                        found.setdefault(their, our)
        return found

    def lengths(self, batch: StoreBatch) -> list[int]:
        """The student's tokens of each example of a batch; 0 where it has none that fit."""
        found = self._tokenized(batch, _parts(batch))
        return [0 if isinstance(own, LeftOut) else len(own.token_ids) for own in found]

    def align(self, batch: StoreBatch) -> list[AlignedExample | LeftOut]:
        """The examples of a batch.

        Args:
            batch: with the field num_kept.
        """
        parts = _parts(batch)
        num_kept = np.split(batch.column("num_kept"), batch.row_offsets[1:-1])
        tokenized = self._tokenized(batch, parts)
        return [
            own if isinstance(own, LeftOut) else self._aligned(*part, own, kept > 0)
            for part, own, kept in zip(parts, tokenized, num_kept, strict=True)
        ]

    def _aligned(
        self,
        ids: npt.NDArray[np.uint32],
        mask: Mask,
        own: TokenizedExample,
        has_teacher: npt.NDArray[np.bool_],
    ) -> AlignedExample | LeftOut:
        theirs = self._teacher.replies(ids, mask)
        ours = self._own.replies(own.token_ids, own.is_response)
        cut_off = not theirs.texts[-1].endswith(END)
        if not same_bytes(theirs, ours, cut_off=cut_off):
            return LeftOut.OTHER_BYTES
        their_sizes, our_sizes = np.concatenate(theirs.sizes), np.concatenate(ours.sizes)
        if cut_off:
            own, our_sizes = _within(own, our_sizes, int(their_sizes.sum()))
            if not len(our_sizes):
                return LeftOut.OTHER_BYTES
        spans = align_tokens(their_sizes, our_sizes, cut_off=cut_off)
        assert spans is not None
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
            num_bytes=int(our_sizes.sum()) - sum(text.endswith(END) for text in theirs.texts),
        )

    def _tokenized(
        self, batch: StoreBatch, parts: Sequence[tuple[npt.NDArray[np.uint32], Mask]]
    ) -> list[TokenizedExample | LeftOut]:
        """The student's tokens of each example."""
        found: list[TokenizedExample | LeftOut] = [LeftOut.OTHER_BYTES] * len(parts)
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
                    found[number] = self._fitting(example)
        return found

    def _fitting(self, example: TokenizedExample) -> TokenizedExample | LeftOut:
        if example.status != "ok":
            return LeftOut.OTHER_BYTES
        return LeftOut.TOO_LONG if len(example.token_ids) > self.max_length else example

    def _record(self, index: int, ids: npt.NDArray[np.uint32], mask: Mask) -> Record | None:
        """What to tokenise for an example; None if its bytes are no text."""
        if self._records is not None:
            return self._records(int(self._store.index.source_index[index]))
        text_ids = self._without_bos(ids, mask)
        reply_ids = text_ids[int(np.argmax(mask)) - (len(ids) - len(text_ids)) :]
        given = self._teacher.joined(text_ids[: len(text_ids) - len(reply_ids)])
        finished = self._teacher.is_finished(ids, mask)
        reply = self._teacher.joined(reply_ids[:-1] if finished else reply_ids)
        if self._inserts_space:
            given, reply = (given[1:], reply) if given else (given, reply.removeprefix(b" "))
        try:
            # A reply that was cut off may end within a character.
            return {
                "prompt": given.decode(),
                "response": reply.decode() if finished else reply.decode(errors="ignore"),
            }
        except UnicodeDecodeError:
            return None

    def _without_bos(self, ids: npt.NDArray[np.uint32], mask: Mask) -> npt.NDArray[np.uint32]:
        known = self._store.spec.special_tokens or {}
        return ids[1:] if not mask[0] and int(ids[0]) == known.get("bos_id") else ids


def own_vocabulary(tokenizer: Any) -> Vocabulary:
    """Bytes and markup of a tokenizer's tokens."""
    return Vocabulary(token_bytes(tokenizer), special_tokens(tokenizer)["special_ids"])


def _parts(batch: StoreBatch) -> list[tuple[npt.NDArray[np.uint32], Mask]]:
    """Ids and mask of each example."""
    both = (np.split(x, batch.token_offsets[1:-1]) for x in (batch.token_ids, batch.is_response))
    return list(zip(*both, strict=True))


def _within(
    own: TokenizedExample, sizes: IntArray, num_bytes: int
) -> tuple[TokenizedExample, IntArray]:
    """The student's example up to its last response token within `num_bytes` of the replies."""
    count = int(np.searchsorted(np.cumsum(sizes), num_bytes, side="right"))
    positions = np.flatnonzero(own.is_response)
    stop = int(positions[count - 1]) + 1 if count else int(positions[0])
    ids, mask = own.token_ids[:stop], own.is_response[:stop]
    return replace(own, token_ids=ids, is_response=mask), sizes[:count]
