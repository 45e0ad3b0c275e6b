"""The teacher's side: a corpus and a frozen large model in, a sealed store out.

Names are imported when they are first used, so that a config costs no torch.
"""

from typing import TYPE_CHECKING

from caskd.store.imports import lazy_exports

if TYPE_CHECKING:
    from caskd.precompute.config import PrecomputeConfig
    from caskd.precompute.planning import plan
    from caskd.precompute.workers import precompute

__all__ = [
    "PrecomputeConfig",
    "plan",
    "precompute",
]

__getattr__ = lazy_exports(
    __name__,
    {
        "PrecomputeConfig": "config",
        "plan": "planning",
        "precompute": "workers",
    },
)


def __dir__() -> list[str]:
    return sorted(__all__)
