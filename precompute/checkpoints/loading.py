"""Load a teacher's weights onto one device, or over several."""

from typing import Any

import torch

from caskd.models import memory_errors, open_adapter, open_model
from caskd.precompute.checkpoints.source import FLAG, TransformersCheckpoint
from caskd.store.errors import UsageError


def load_model(source: TransformersCheckpoint, device: torch.device) -> Any:
    """Load the weights, for inference only.

    Raises:
        UsageError: weights are missing or do not fit into memory.
    """
    try:
        with memory_errors():
            model = open_model(
                source.folder,
                FLAG,
                dtype=source.load_dtype,
                attention=source.attention,
                device_map=source.device_map,
                tensor_parallel=source.tensor_parallel,
                name=source.name,
            )
            if source.adapter is not None:
                adapter = source.adapter
                model = open_adapter(model, adapter.folder, "--adapter", name=adapter.name)
            if source.device_map is None and source.tensor_parallel == 1:
                model = model.to(device)
    except MemoryError as error:
        raise UsageError(
            f"{FLAG} {source.name}: the weights in {source.load_dtype} do not fit on {device} "
            f"({error}); expected a device with more memory; pass --device-map auto to use all "
            "devices, a larger --tensor-parallel, or --dtype bfloat16 with another --store"
        ) from error
    return model.requires_grad_(False).eval()
