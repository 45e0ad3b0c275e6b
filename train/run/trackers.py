"""Optional trackers of the metrics: TensorBoard and Weights & Biases."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from caskd.store.imports import require
from caskd.store.io import files
from caskd.train.config import TrainConfig

Track = Callable[[int, Mapping[str, Any]], None]
"""A function of the step and its values; it ignores values that are not numbers."""


@contextmanager
def trackers(config: TrainConfig) -> Iterator[list[Track]]:
    """Open the trackers of --tensorboard and --wandb; none by default.

    Raises:
        UsageError: a package is not installed.
    """
    tracks: list[Track] = []
    closers: list[Callable[[], None]] = []
    if config.tensorboard:
        _open_tensorboard(config.out, tracks, closers)
    if config.wandb is not None:
        _open_wandb(config, tracks, closers)
    try:
        yield tracks
    finally:
        for close in closers:
            close()


def check_trackers(config: TrainConfig) -> None:
    """Check that the packages of the chosen trackers are installed."""
    for flag, wanted, package in (
        ("--tensorboard", config.tensorboard, "tensorboard"),
        ("--wandb", config.wandb is not None, "wandb"),
    ):
        if wanted:
            require(package, extra=package, needed_by=flag)


def numbers(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The finite numbers of a nested mapping, keyed by their path."""
    found: dict[str, float] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and math.isfinite(value) and key != "step":
            found[f"{prefix}{key}"] = float(value)
    return found


def _open_tensorboard(out: Path, tracks: list[Track], closers: list[Callable[[], None]]) -> None:
    from torch.utils.tensorboard import SummaryWriter

    writer: Any = SummaryWriter(str(out / "tensorboard"))

    def track(step: int, values: Mapping[str, Any]) -> None:
        for name, value in numbers(values).items():
            writer.add_scalar(name, value, step)

    tracks.append(track)
    closers.append(writer.close)


def _open_wandb(
    config: TrainConfig, tracks: list[Track], closers: list[Callable[[], None]]
) -> None:
    wandb: Any = require("wandb", extra="wandb", needed_by="--wandb")
    path = config.out / "wandb-run-id"  # a resumed run continues the same curve
    if not path.exists():
        files.replace_file(path, uuid4().hex[:12].encode())
    run = wandb.init(
        project=config.wandb,
        id=path.read_text(encoding="utf-8"),
        name=config.out.name,
        dir=str(config.out),
        config=config.to_shared_json(),
        resume="allow",
    )
    tracks.append(lambda step, values: run.log(numbers(values), step=step))
    closers.append(run.finish)
