"""Row fields on their way from the device to the host."""

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from caskd.precompute.rows import Columns, Fields


class CopiedFields(Mapping[str, NDArray[Any]]):
    """A batch's row fields; the first one that is read waits until all of them are on the host.

    The copies go into pinned memory, behind the kernels that compute the columns: 0.8 kB a row at
    k = 64, so that a stream of their own would save nothing.

    Args:
        columns: what the device computes, perhaps later.
        stored: turns copied columns into row fields.
    """

    def __init__(self, columns: Columns, stored: Callable[[Fields], Fields]) -> None:
        self._stored = stored
        self._copies = {name: _copy(values) for name, values in columns.items()}
        gpus = {values.device for values in columns.values() if values.device.type == "cuda"}
        self._events = [torch.cuda.current_stream(gpu).record_event() for gpu in gpus]

    @cached_property
    def _fields(self) -> Fields:
        for event in self._events:
            event.synchronize()
        return self._stored({name: values.numpy() for name, values in self._copies.items()})

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self._fields[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)


def _copy(values: Tensor) -> Tensor:
    if values.device.type != "cuda":
        return values
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    return host.copy_(values, non_blocking=True)
