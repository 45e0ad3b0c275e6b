"""Spans: groups of teacher and student tokens of one response whose byte ends coincide.

Two tokenizers cut the same bytes in different positions. A span ends where both have an end, so
that both say something about exactly its bytes. A border may lie inside a UTF-8 character.

Legend: T teacher tokens, S student tokens, C spans.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from caskd.store.corpus import vocab_digest

IntArray = npt.NDArray[np.int64]
Mask = npt.NDArray[np.uint8]

NO_SPAN = -1

END = b"\xff"
"""Stands for the token that ends a reply. No text in UTF-8 has this byte."""


@dataclass(frozen=True, eq=False)
class Spans:
    """The spans of one response: as many and as small as both tokenisations allow."""

    of_teacher: IntArray
    """[T] span of each teacher token, ascending; NO_SPAN for a token without bytes, or behind the
    last shared end."""
    of_student: IntArray
    """[S] span of each student token, likewise."""
    count: int
    """C."""


def align_tokens(
    teacher_sizes: IntArray, student_sizes: IntArray, *, cut_off: bool = False
) -> Spans | None:
    """Spans of two tokenisations of the same bytes.

    Args:
        teacher_sizes: [T] bytes of each teacher token. Control tokens have 0 bytes.
        student_sizes: [S] bytes of each student token.
        cut_off: one side may end before the other.

    Returns:
        None if the two have different numbers of bytes and must not.
    """
    if not cut_off and teacher_sizes.sum() != student_sizes.sum():
        return None
    teacher_ends, student_ends = np.cumsum(teacher_sizes), np.cumsum(student_sizes)
    shared = np.intersect1d(teacher_ends[teacher_sizes > 0], student_ends[student_sizes > 0])
    return Spans(
        _spans_of(teacher_ends, teacher_sizes, shared),
        _spans_of(student_ends, student_sizes, shared),
        len(shared),
    )


def _spans_of(ends: IntArray, sizes: IntArray, shared: IntArray) -> IntArray:
    span = np.searchsorted(shared, ends)
    return np.where((sizes > 0) & (span < len(shared)), span, NO_SPAN)


@dataclass(frozen=True, eq=False)
class Replies:
    """The replies of an example: their bytes, and the bytes of each response token."""

    texts: list[bytes]
    """One for each run of response tokens. One that ends with a special token ends with END."""
    sizes: list[IntArray]
    """Bytes of the tokens of each run. Special tokens have none, but the end of a reply has one."""
    ends: list[int]
    """Last token of each run."""


class Vocabulary:
    """Bytes of tokens, and which of them are markup.

    Args:
        tokens: bytes of each id.
        special: ids that stand for no text.
    """

    def __init__(self, tokens: Sequence[bytes], special: Sequence[int]) -> None:
        self.tokens, self.special = tokens, frozenset(special)

    @cached_property
    def digest(self) -> str:
        """`vocab_digest` of the tokens."""
        return vocab_digest(list(self.tokens))

    def is_finished(self, ids: npt.NDArray[np.uint32], mask: Mask) -> bool:
        """Whether the last response token is a special one."""
        return int(ids[np.flatnonzero(mask)[-1]]) in self.special

    def joined(self, ids: npt.NDArray[np.uint32]) -> bytes:
        """The bytes of tokens, special ones by their names."""
        return b"".join(self.tokens[id_] for id_ in ids.tolist())

    def replies(self, ids: npt.NDArray[np.uint32], mask: Mask) -> Replies:
        """The replies of an example."""
        edges = np.flatnonzero(np.diff(mask, prepend=0, append=0))
        texts, sizes, ends = [], [], []
        for start, stop in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
            run = ids[start:stop].tolist()
            parts = [b"" if id_ in self.special else self.tokens[id_] for id_ in run]
            if run[-1] in self.special:
                parts[-1] = END
            texts.append(b"".join(parts))
            sizes.append(np.array([len(part) for part in parts], np.int64))
            ends.append(run[-1])
        return Replies(texts, sizes, ends)


def same_bytes(theirs: Replies, ours: Replies, *, cut_off: bool) -> bool:
    """Whether the replies of both sides have the same bytes.

    A space that a tokenizer inserts before a text is no byte of the reply, and is taken off the
    sizes.

    Args:
        theirs: of the teacher.
        ours: of the student.
        cut_off: the teacher's last reply may end before the student's, or within a character.
    """
    count = len(theirs.texts)
    if count != len(ours.texts) and not (cut_off and count < len(ours.texts)):
        return False
    for number, (their, our) in enumerate(zip(theirs.texts, ours.texts, strict=False)):
        agree = _overlap if cut_off and number == count - 1 else bytes.__eq__
        if agree(their, our):
            continue
        if their.startswith(b" ") and agree(their[1:], our):
            theirs.sizes[number][0] -= 1
        elif our.startswith(b" ") and agree(their, our[1:]):
            ours.sizes[number][0] -= 1
        else:
            return False
    return True


def _overlap(their: bytes, our: bytes) -> bool:
    return their.startswith(our) or our.startswith(their)
