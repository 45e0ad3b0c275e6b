"""caskd in other training loops: a torch dataset and transformers' Trainer.

Names are imported on first use, so that the dataset does not need accelerate.
"""

from typing import TYPE_CHECKING

from caskd.store.imports import lazy_exports

if TYPE_CHECKING:
    from caskd.train.integrations.hf_trainer import CascadeTrainer
    from caskd.train.integrations.store_dataset import StoreDataset

__all__ = ["CascadeTrainer", "StoreDataset"]

__getattr__ = lazy_exports(
    __name__, {"CascadeTrainer": "hf_trainer", "StoreDataset": "store_dataset"}
)
