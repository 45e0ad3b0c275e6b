"""The fastest blocks that a benchmark measured, in caskd's cache folder.

Only `benchmarks/bench_blocks.py` writes them: a run never measures, so that no clock decides what
it does. A file that cannot be read, or says something impossible, counts as absent.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from caskd.models.kernels.blocks import (
    CANDIDATES,
    Block,
    Capability,
    candidates,
    default_block,
    shape_bucket,
)
from caskd.store.io import cache_folder, files, read_json_object

_FILE = "kernel-blocks.json"


@cache
def block_for(kernel: str, device: torch.device, num_columns: int) -> Block:
    """The block of a kernel on rows of so many columns: the measured one, or the default.

    Args:
        kernel: its name. Those outside of `CANDIDATES` have the default, whatever the file says.
    """
    capability = capability_of(device)
    default = default_block(capability, num_columns)
    if kernel not in CANDIDATES:
        return default
    measured = _block(_read().get(key_of(kernel, device, num_columns)))
    return measured if measured in candidates(capability, num_columns) else default


def write_measured(blocks: Mapping[tuple[str, int], Block], device: torch.device) -> Path:
    """Add measured blocks to the file, which is written anew where it is damaged.

    Args:
        blocks: by kernel and number of columns.

    Returns:
        The file. Other processes see it at their start.

    Raises:
        StoreWriteError: it cannot be written.
    """
    found = _read()
    for (kernel, num_columns), block in blocks.items():
        found[key_of(kernel, device, num_columns)] = [block.columns, block.num_warps]
    path = cache_folder() / _FILE
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    files.replace_file(path, json.dumps(found, indent=1, sort_keys=True).encode())
    block_for.cache_clear()
    return path


def key_of(kernel: str, device: torch.device, num_columns: int) -> str:
    """Everything that a measurement holds for: device, capability, kernel, shapes, versions."""
    is_gpu = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if is_gpu else device.type
    capability = capability_of(device)
    generation = "none" if capability is None else f"sm_{capability[0]}{capability[1]}"
    versions = f"caskd {_version('caskd')}", f"triton {_version('triton')}"
    return " | ".join([name, generation, kernel, str(shape_bucket(num_columns)), *versions])


def capability_of(device: torch.device) -> Capability | None:
    """Compute capability of a device; None where it is no CUDA device."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else None


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "of a source tree"


def _read() -> dict[str, Any]:
    with suppress(OSError, ValueError):
        return read_json_object(cache_folder() / _FILE)
    return {}


def _block(value: Any) -> Block | None:
    is_pair = isinstance(value, list) and len(value) == 2
    return Block(*value) if is_pair and all(type(number) is int for number in value) else None
