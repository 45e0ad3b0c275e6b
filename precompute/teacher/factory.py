"""Which backend runs the teacher. A new backend is one module and one entry of `_BACKENDS`."""

from collections.abc import Callable, Mapping

from caskd.precompute.config import PrecomputeConfig
from caskd.precompute.teacher.protocol import TeacherSource
from caskd.precompute.teacher.transformers_source import TransformersSource
from caskd.store.errors import UsageError

_BACKENDS: Mapping[str, Callable[[PrecomputeConfig], TeacherSource]] = {
    "transformers": TransformersSource.find,
}


def find_teacher(config: PrecomputeConfig, backend: str = "transformers") -> TeacherSource:
    """Find the teacher of a capture without loading its weights.

    Raises:
        UsageError: there is no such backend or teacher, or the backend does not support an option.
    """
    if backend not in _BACKENDS:
        raise UsageError(
            f"teacher backend {backend!r} is unknown; choose one of {', '.join(_BACKENDS)}"
        )
    return _BACKENDS[backend](config)
