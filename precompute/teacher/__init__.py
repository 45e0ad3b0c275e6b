"""Teachers: finding one, loading it, and its forward pass."""

from caskd.precompute.teacher.factory import find_teacher
from caskd.precompute.teacher.protocol import Teacher, TeacherSource

__all__ = [
    "Teacher",
    "TeacherSource",
    "find_teacher",
]
