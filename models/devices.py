"""Devices, deterministic kernels and errors of memory."""

import os
import re
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from caskd.store.errors import UsageError, reason

# Errors of the CPU's allocator, and of cuBLAS when it cannot allocate its own work space.
_OUT_OF_MEMORY = ("not enough memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")

_NAMES = re.compile(r"auto|cpu|cuda(:\d{1,4})?", re.ASCII)


def default_device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def check_device_name(name: str) -> None:
    """Refuse a value of --device that no machine has.

    Raises:
        UsageError: the device is not one of auto, cpu, cuda and cuda:N.
    """
    if not _NAMES.fullmatch(name):
        raise UsageError(f"--device {name}: expected auto, cpu, cuda or cuda:N; pass one of these")


def pick_device(name: str) -> torch.device:
    """The device of a --device flag: `auto` is the GPU if there is one, else the CPU.

    Raises:
        UsageError: the device is not one of auto, cpu, cuda and cuda:N, or is not present.
    """
    check_device_name(name)
    if name == "auto":
        return default_device()
    kind, _, number = name.partition(":")
    if kind == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            f"--device {name}: no CUDA device was found; expected one; pass --device cpu"
        )
    if number and int(number) >= torch.cuda.device_count():
        last = torch.cuda.device_count() - 1
        raise UsageError(f"--device {name}: expected cuda:0 to cuda:{last}; pass one of these")
    return torch.device(name)


def to_device(array: npt.NDArray[Any], device: torch.device) -> Tensor:
    """A copy of an array on a device, without waiting for a GPU: it comes from pinned memory.

    On the CPU it is the array's own memory.
    """
    tensor = torch.from_numpy(array)
    if device.type != "cuda" or not array.size:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def peak_process_bytes() -> int:
    """The most memory that this process held resident so far."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss begins at the size of the process that started this one
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM:"))
        return 1024 * int(line.split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


@contextmanager
def fixed_kernels(on: bool) -> Iterator[None]:
    """Use deterministic kernels inside the block, and restore the setting after it."""
    before = torch.are_deterministic_algorithms_enabled()
    if on:  # cuBLAS reads it when it starts; without it torch refuses cuBLAS matrix products
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(on or before)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@contextmanager
def memory_errors() -> Iterator[None]:
    """Turn every error of memory into MemoryError."""
    try:
        yield
    except RuntimeError as error:
        named = any(words in str(error) for words in _OUT_OF_MEMORY)
        if not (named or isinstance(error, torch.OutOfMemoryError)):
            raise
        text = reason(error)
    else:
        return
    # Outside the handler, so that no frame of the failed pass keeps its tensors alive.
    torch.cuda.empty_cache()
    raise MemoryError(text)
