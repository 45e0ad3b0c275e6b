"""Where else the metrics go: TensorBoard and Weights & Biases, each when asked for."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from caskd.store.errors import UsageError
from caskd.store.io import replace_file
from caskd.train.config import TrainConfig

Track = Callable[[int, Mapping[str, Any]], None]
"""Called with the step and its values; those that are no numbers are left out."""


@contextmanager
def trackers(config: TrainConfig) -> Iterator[list[Track]]:
    """Open what the options ask for; nothing by default.

    Raises:
        UsageError: its package is not installed.
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
    """Refuse, before anything heavy, what is not installed."""
    for flag, wanted, package in (
        ("--tensorboard", config.tensorboard, "tensorboard"),
        ("--wandb", config.wandb is not None, "wandb"),
    ):
        if wanted:
            _import(flag, package)


def numbers(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The finite numbers of a nested mapping, by their path."""
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
    wandb = _import("--wandb", "wandb")
    path = config.out / "wandb-run-id"  # so that a resumed run goes on in the same curve
    if not path.exists():
        replace_file(path, uuid4().hex[:12].encode())
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


def _import(flag: str, package: str) -> Any:
    from importlib import import_module

    try:
        return import_module(package)
    except ImportError:
        raise UsageError(f"{flag} needs {package}: pip install 'caskd[{package}]'.") from None
