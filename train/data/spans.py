"""Spans: groups of teacher and student tokens of one response whose byte ends coincide.

Two tokenizers cut the same bytes in different positions. A span ends where both have an end, so
that both say something about exactly its bytes. A border may lie inside a UTF-8 character.

Legend: T teacher tokens, S student tokens, C spans.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]

NO_SPAN = -1


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
