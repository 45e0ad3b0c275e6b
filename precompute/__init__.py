"""Capture: run a frozen teacher over a corpus and write a sealed store.

Names are imported on first use, so that importing a config does not import torch.
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
