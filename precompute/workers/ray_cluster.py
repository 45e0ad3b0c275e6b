"""Reaching a Ray cluster, and what is asked of it."""

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


def actor_options(
    resources: Mapping[str, float], config: PrecomputeConfig
) -> tuple[dict[str, Any], str]:
    """What each actor asks of the cluster, and what the user should know of it.

    A GPU each where the cluster has any; else an equal part of the cores, which is also the number
    of threads that torch gets.
    """
    num_gpus, num_workers = int(resources.get("GPU", 0)), config.num_workers
    quiet = {"env_vars": {"HF_HUB_DISABLE_PROGRESS_BARS": "1"}}
    options: dict[str, Any] = {"max_restarts": 0, "runtime_env": quiet}
    if num_gpus and config.device != "cpu":
        advice = f"{num_workers} workers wait for a GPU each, of which the cluster has {num_gpus}"
        return {**options, "num_gpus": 1}, advice if num_workers > num_gpus else ""
    cores = resources.get("CPU", 1) / num_workers
    return {**options, "num_cpus": int(cores) if cores >= 1 else cores}, ""


def import_ray() -> Any:
    """Ray, which is an extra.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import ray
        import ray.exceptions
    except ModuleNotFoundError:
        raise UsageError(
            "--executor ray needs Ray, which is not installed. Type: pip install 'caskd[ray]'"
        ) from None
    return ray


@contextmanager
def connected() -> Iterator[Any]:
    """The cluster that RAY_ADDRESS names, or one of this machine alone, without a dashboard."""
    ray = import_ray()
    if ray.is_initialized():
        yield ray
        return
    address = os.environ.get("RAY_ADDRESS")
    alone = {} if address else {"include_dashboard": False}
    try:
        with _handlers_kept():
            ray.init(address=address or "local", logging_level=logging.ERROR, **alone)
    except ConnectionError:
        raise UsageError(
            f"no Ray cluster answers at RAY_ADDRESS={address!r}; expected one that runs: "
            "ray start, or unset RAY_ADDRESS to use this machine alone"
        ) from None
    try:
        yield ray
    finally:
        ray.shutdown()


@contextmanager
def _handlers_kept() -> Iterator[None]:
    """Ray handles SIGTERM by aborting; ours, which end the job in order, come back."""
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in SIGNALS} if main else {}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def for_any_folder(config: PrecomputeConfig) -> PrecomputeConfig:
    """The same with absolute paths: actors do not live in this folder."""

    def found_anywhere(name: str) -> str:
        return str(Path(name).resolve()) if Path(name).exists() else name

    return replace(
        config,
        teacher=found_anywhere(config.teacher),
        adapter=config.adapter and found_anywhere(config.adapter),
        data=tuple(map(found_anywhere, config.data)),
        store=str(Path(config.store).resolve()),
    )
