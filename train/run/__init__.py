"""`caskd train` and `caskd export`: plan, loop, schedule, logs, evaluation, memory forecast."""

from caskd.train.run.exporter import export_command
from caskd.train.run.loop import train

__all__ = [
    "export_command",
    "train",
]
