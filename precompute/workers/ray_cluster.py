"""Connect to a Ray cluster, and choose the resources of each actor."""

import logging
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from caskd.precompute.config import PrecomputeConfig
from caskd.precompute.workers.signals import SIGNALS
from caskd.store.errors import UsageError
from caskd.store.imports import require


def actor_options(
    resources: Mapping[str, float], config: PrecomputeConfig
) -> tuple[dict[str, Any], str]:
    """Choose the resources of each actor: one GPU if the cluster has any, else its share of cores.

    The number of cores is also the number of threads that torch gets.

    Returns:
        The options of `ray.remote`, and a warning for the user, or "".
    """
    num_gpus, num_workers = int(resources.get("GPU", 0)), config.num_workers
    quiet = {"env_vars": {"HF_HUB_DISABLE_PROGRESS_BARS": "1"}}
    options: dict[str, Any] = {"max_restarts": 0, "runtime_env": quiet}
    if num_gpus and config.device != "cpu":
        warning = f"{num_workers} workers wait for a GPU each, of which the cluster has {num_gpus}"
        return {**options, "num_gpus": 1}, warning if num_workers > num_gpus else ""
    cores = resources.get("CPU", 1) / num_workers
    return {**options, "num_cpus": int(cores) if cores >= 1 else cores}, ""


@contextmanager
def ray_session() -> Iterator[Any]:
    """Connect to the cluster at RAY_ADDRESS, or start one on this machine without a dashboard.

    Raises:
        UsageError: Ray is not installed, or no cluster runs at RAY_ADDRESS.
    """
    ray = require("ray", extra="ray", needed_by="--executor ray")
    if ray.is_initialized():
        yield ray
        return
    address = os.environ.get("RAY_ADDRESS")
    local_only = {} if address else {"include_dashboard": False}
    try:
        with _signal_handlers_kept():
            ray.init(address=address or "local", logging_level=logging.ERROR, **local_only)
    except ConnectionError:
        raise UsageError(
            f"RAY_ADDRESS={address!r}: no Ray cluster there; expected the address of a running "
            "cluster; run ray start, or unset RAY_ADDRESS to use this machine alone"
        ) from None
    try:
        yield ray
    finally:
        ray.shutdown()


@contextmanager
def _signal_handlers_kept() -> Iterator[None]:
    """Restore our signal handlers, which end the job in order; Ray installs one that aborts."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in SIGNALS} if in_main_thread else {}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def with_absolute_paths(config: PrecomputeConfig) -> PrecomputeConfig:
    """Return the config with absolute paths: actors run in another working directory."""

    def absolute(name: str) -> str:
        return str(Path(name).resolve()) if Path(name).exists() else name

    return replace(
        config,
        teacher=absolute(config.teacher),
        adapter=config.adapter and absolute(config.adapter),
        data=tuple(map(absolute, config.data)),
        store=str(Path(config.store).resolve()),
    )
