"""Answers of a corpus that are interrupted between two of their parts."""

import pytest

from caskd.precompute.responses import writing


def interrupt_parts(monkeypatch: pytest.MonkeyPatch, after: int) -> list[int]:
    """Interrupt the writing of answers after so many parts; the list holds how many are left."""
    real, left = writing._part_bytes, [after]

    def dying(*args: object) -> bytes:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(writing, "_part_bytes", dying)
    return left
