"""Teachers: which checkpoint, loading it, and its forward pass."""

from caskd.precompute.teacher.source import TeacherSource, find_teacher
from caskd.precompute.teacher.transformers_teacher import (
    Teacher,
    TransformersTeacher,
    fixed_kernels,
)

__all__ = [
    "Teacher",
    "TeacherSource",
    "TransformersTeacher",
    "find_teacher",
    "fixed_kernels",
]
