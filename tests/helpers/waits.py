"""Watches for operations at which a host would wait for a GPU, on a machine that has none."""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode

WAITING = {
    "aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal",
    "aten::is_nonzero", "aten::_unique2", "aten::unique_dim", "aten::unique_consecutive",
    "aten::repeat_interleave.Tensor",
}  # fmt: skip
METHODS = ("item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__")
OWNERS = ("caskd", "transformers")
TESTS = Path(__file__).parents[1]


class WaitError(AssertionError):
    """The host would wait here."""


class _Watch(TorchDispatchMode):
    def __init__(self, see: Callable[[str], None]) -> None:
        super().__init__()
        self.see = see

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name, overload = function._schema.name, function._schema.overload_name
        if name in WAITING or f"{name}.{overload}" in WAITING:
            self.see(name)
        if name == "aten::index" and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        ):
            self.see("aten::index by a mask")
        return function(*args, **(kwargs or {}))


@contextmanager
def _watched(see: Callable[[str], None]) -> Iterator[None]:
    """Call `see` at each wait, once: not for the operations by which a method waits."""
    inside = False

    def seen(name):
        if not inside:
            see(name)

    def watch(name):
        real = getattr(torch.Tensor, name)

        def method(self, *args, **kwargs):
            nonlocal inside
            seen(f"Tensor.{name}")
            before, inside = inside, True
            try:
                return real(self, *args, **kwargs)
            finally:
                inside = before

        return mock.patch.object(torch.Tensor, name, method)

    with _Watch(seen), ExitStack() as patches:
        for name in METHODS:
            patches.enter_context(watch(name))
        yield


@contextmanager
def no_waits() -> Iterator[None]:
    """Raise WaitError where a host would wait for values of a device."""

    def refuse(name):
        raise WaitError(name)

    with _watched(refuse):
        yield


@contextmanager
def counted_waits() -> Iterator[list[tuple[str, str]]]:
    """Collect the waits: the file of caskd or transformers that waits, and the operation."""
    waits = []
    with _watched(lambda name: waits.append((_waiting_file(), name))):
        yield waits


def _waiting_file() -> str:
    frame = sys._getframe()
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if any(owner in path.parts for owner in OWNERS) and not path.is_relative_to(TESTS):
            return path.name
        frame = frame.f_back
    return "elsewhere"
