"""Train a student from a store: order -> batches -> loss -> DeepSpeed -> export.

Names are imported on first use, so that importing a config does not import torch.
"""

from typing import TYPE_CHECKING

from caskd.store.imports import lazy_exports

if TYPE_CHECKING:
    from caskd.train.config import TrainConfig
    from caskd.train.integrations import CascadeTrainer, StoreDataset
    from caskd.train.loss import LossSums, cascade_aware_loss, keep_mask
    from caskd.train.run import train

__all__ = [
    "CascadeTrainer",
    "LossSums",
    "StoreDataset",
    "TrainConfig",
    "cascade_aware_loss",
    "keep_mask",
    "train",
]

__getattr__ = lazy_exports(
    __name__,
    {
        "CascadeTrainer": "integrations",
        "LossSums": "loss",
        "StoreDataset": "integrations",
        "TrainConfig": "config",
        "cascade_aware_loss": "loss",
        "keep_mask": "loss",
        "train": "run",
    },
)


def __dir__() -> list[str]:
    return sorted(__all__)
