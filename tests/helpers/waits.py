"""Watches for operations at which a host would wait for a GPU, on a machine that has none."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode

WAITING = {
    "aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal",
    "aten::is_nonzero", "aten::_unique2", "aten::unique_dim", "aten::unique_consecutive",
    "aten::repeat_interleave.Tensor",
}  # fmt: skip
METHODS = ("item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__")


class WaitError(AssertionError):
    """The host would wait here."""


class _Watch(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name
        full = f"{name}.{function._schema.overload_name}".removesuffix(".")
        if name in WAITING or full in WAITING:
            raise WaitError(full)
        if name == "aten::index" and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        ):
            raise WaitError("aten::index by a mask")
        return function(*args, **(kwargs or {}))


@contextmanager
def no_waits() -> Iterator[None]:
    """Raise WaitError where a host would wait for values of a device."""

    def refuse(name):
        def method(self, *args, **kwargs):
            raise WaitError(f"Tensor.{name}")

        return method

    patches = [mock.patch.object(torch.Tensor, name, refuse(name)) for name in METHODS]
    with _Watch():
        for patch in patches:
            patch.start()
        try:
            yield
        finally:
            for patch in patches:
                patch.stop()
