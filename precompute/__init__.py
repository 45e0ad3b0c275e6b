"""The teacher's side: a corpus and a frozen large model in, a sealed store out.

The names are imported when they are first used, so that a config costs no torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from caskd.precompute.config import PrecomputeConfig
    from caskd.precompute.planning.planner import plan
    from caskd.precompute.workers.run import precompute

_HOME = {"PrecomputeConfig": "config", "plan": "planning", "precompute": "run"}

__all__ = ["PrecomputeConfig", "plan", "precompute"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
