"""The training engine. This is the only folder that imports DeepSpeed."""

from caskd.train.engine.deepspeed_engine import Ranks, TrainEngine, init_distributed
from caskd.train.engine.settings import (
    Settings,
    deepspeed_settings,
    engine_settings,
    merge_settings,
    read_settings,
)

__all__ = [
    "Ranks",
    "Settings",
    "TrainEngine",
    "deepspeed_settings",
    "engine_settings",
    "init_distributed",
    "merge_settings",
    "read_settings",
]
