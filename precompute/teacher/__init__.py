"""Teachers: finding one, loading it, and its forward pass."""

from caskd.precompute.teacher.factory import find_teacher
from caskd.precompute.teacher.following import follow
from caskd.precompute.teacher.protocol import LocalTeacher, Teacher, TeacherSource
from caskd.precompute.teacher.rank_group import rank_group

__all__ = [
    "LocalTeacher",
    "Teacher",
    "TeacherSource",
    "find_teacher",
    "follow",
    "rank_group",
]
