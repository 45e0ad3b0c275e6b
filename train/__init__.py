"""The student's side: order -> batches -> loss -> DeepSpeed -> export."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from caskd.train.config import TrainConfig
    from caskd.train.integrations.hf_trainer import CascadeTrainer
    from caskd.train.integrations.store_dataset import StoreDataset
    from caskd.train.loss.api import LossSums, cascade_aware_loss, keep_mask
    from caskd.train.run.loop import train

_HOMES = {
    "TrainConfig": "caskd.train.config",
    "train": "caskd.train.run.loop",
    "cascade_aware_loss": "caskd.train.loss.api",
    "keep_mask": "caskd.train.loss.api",
    "LossSums": "caskd.train.loss.api",
    "StoreDataset": "caskd.train.integrations.store_dataset",
    "CascadeTrainer": "caskd.train.integrations.hf_trainer",
}

__all__ = [
    "CascadeTrainer",
    "LossSums",
    "StoreDataset",
    "TrainConfig",
    "cascade_aware_loss",
    "keep_mask",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import a name when it is first used: a config must not cost the import of torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
