"""DeepSpeed: the only folder that imports it."""

from caskd.train.engine.deepspeed_engine import Ranks, TrainEngine, connected
from caskd.train.engine.settings import Settings, deepspeed_settings, merge_settings, read_settings

__all__ = [
    "Ranks",
    "Settings",
    "TrainEngine",
    "connected",
    "deepspeed_settings",
    "merge_settings",
    "read_settings",
]
