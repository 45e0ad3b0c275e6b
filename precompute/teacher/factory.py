"""Which backend runs the teacher. A new backend is one module and one entry of `_BACKENDS`."""

from collections.abc import Callable, Mapping

from caskd.precompute.config import PrecomputeConfig
from caskd.precompute.teacher.protocol import TeacherSource
from caskd.precompute.teacher.server_source import ServerSource
from caskd.precompute.teacher.transformers_source import TransformersSource
from caskd.precompute.teacher.vllm_source import VllmSource
from caskd.store.errors import UsageError

_BACKENDS: Mapping[str, Callable[[PrecomputeConfig], TeacherSource]] = {
    "transformers": TransformersSource.find,
    "vllm": VllmSource.find,
    "server": ServerSource.find,
}


def find_teacher(config: PrecomputeConfig, backend: str | None = None) -> TeacherSource:
    """Find the teacher of a capture without loading its weights.

    Args:
        config: of the capture.
        backend: in place of the config's.

    Raises:
        UsageError: there is no such backend or teacher, or the backend does not support an option.
    """
    backend = config.backend if backend is None else backend
    if backend not in _BACKENDS:
        raise UsageError(
            f"--backend {backend}: unknown; expected one of {', '.join(_BACKENDS)}; pass one of "
            "these"
        )
    return _BACKENDS[backend](config)
