"""Which backend runs the teacher. A new backend is one module and one entry of `_BACKENDS`."""

from collections.abc import Callable, Mapping

from caskd.precompute.config import PrecomputeConfig
from caskd.precompute.teacher.protocol import TeacherSource
from caskd.precompute.teacher.transformers_source import TransformersSource

_BACKENDS: Mapping[str, Callable[[PrecomputeConfig], TeacherSource]] = {
    "transformers": TransformersSource.find,
}


def find_teacher(config: PrecomputeConfig) -> TeacherSource:
    """Find the teacher of a capture without loading its weights.

    Raises:
        UsageError: there is no such teacher, or its backend does not support an option.
    """
    return _BACKENDS["transformers"](config)
