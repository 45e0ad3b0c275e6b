"""Spans of two tokenisations of the same bytes."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from caskd.train.data import align_tokens

CUTS = st.lists(st.integers(0, 4), min_size=1, max_size=20)


def walked(teacher: list[int], student: list[int]) -> list[tuple[list[int], list[int]]]:
    """The spans, by walking both token sequences byte by byte."""
    spans, open_teacher, open_student = [], [], []
    t = s = done_t = done_s = 0
    while t < len(teacher) or s < len(student):
        if done_t <= done_s and t < len(teacher):
            done_t += teacher[t]
            open_teacher += [t] * (teacher[t] > 0)
            t += 1
        else:
            done_s += student[s]
            open_student += [s] * (student[s] > 0)
            s += 1
        if done_t == done_s and open_teacher and open_student:
            spans.append((open_teacher, open_student))
            open_teacher, open_student = [], []
    return spans


def recut(total: int, cuts: list[int]) -> list[int]:
    """Sizes that sum to `total`."""
    sizes = []
    for cut in cuts:
        sizes.append(min(cut, total - sum(sizes)))
    return [*sizes, total - sum(sizes)]


@given(teacher=CUTS, cuts=CUTS)
def test_spans_are_those_of_a_walk(teacher: list[int], cuts: list[int]) -> None:
    student = recut(sum(teacher), cuts)
    spans = align_tokens(np.array(teacher), np.array(student))
    assert spans is not None
    found = [
        (
            np.flatnonzero(spans.of_teacher == span).tolist(),
            np.flatnonzero(spans.of_student == span).tolist(),
        )
        for span in range(spans.count)
    ]
    assert found == walked(teacher, student)


@given(teacher=CUTS, cuts=CUTS)
def test_spans_partition_both_sides_in_order(teacher: list[int], cuts: list[int]) -> None:
    sizes = np.array(teacher), np.array(recut(sum(teacher), cuts))
    spans = align_tokens(*sizes)
    assert spans is not None
    for side, of_token in zip(sizes, (spans.of_teacher, spans.of_student), strict=True):
        assert ((of_token >= 0) == (side > 0)).all()
        inside = of_token[of_token >= 0]
        assert (np.diff(inside) >= 0).all()
        assert np.unique(inside).tolist() == list(range(spans.count))
    ends = [
        np.cumsum(side)[np.flatnonzero(np.diff(of[side > 0], append=spans.count))]
        if (side > 0).all()
        else None
        for side, of in zip(sizes, (spans.of_teacher, spans.of_student), strict=True)
    ]
    if ends[0] is not None and ends[1] is not None:
        assert ends[0].tolist() == ends[1].tolist()


def test_other_bytes_have_no_spans() -> None:
    assert align_tokens(np.array([2, 3]), np.array([2, 2])) is None


def test_equal_tokenisations_are_one_span_a_token() -> None:
    spans = align_tokens(np.array([3, 1, 2]), np.array([3, 1, 2]))
    assert spans is not None
    assert spans.of_teacher.tolist() == spans.of_student.tolist() == [0, 1, 2]
