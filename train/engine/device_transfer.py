"""Micro-batches on their way to the device.

On a GPU a stream of its own copies the next micro-batch from page-locked memory while the current
one is computed. The host waits for neither; the computing stream waits for the copy.
"""

from collections.abc import Iterable, Iterator
from functools import cache

import torch

from caskd.train.data import MicroBatch


def on_device(batches: Iterable[MicroBatch], device: torch.device) -> Iterator[MicroBatch]:
    """The micro-batches on `device`, in their order.

    On a GPU the copy of the next one has begun when one is yielded; at most two are there at a
    time. Elsewhere they are the same tensors.
    """
    if device.type != "cuda":
        yield from batches
        return
    ahead: _Copy | None = None
    for batch in batches:
        current, ahead = ahead, _Copy(batch, device)
        if current is not None:
            yield current.ready()
    if ahead is not None:
        yield ahead.ready()


@cache
def copy_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream of all copies to a GPU: torch's allocator keeps memory for each stream apart."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


class _Copy:
    """A micro-batch that is being copied."""

    def __init__(self, batch: MicroBatch, device: torch.device) -> None:
        self._device = device
        stream = copy_stream(device)
        with torch.cuda.stream(stream):
            self._batch = batch.to(device)
            self._done = stream.record_event()

    def ready(self) -> MicroBatch:
        """The copy, for the current stream, whose later work waits for it."""
        stream = torch.cuda.current_stream(self._device)
        stream.wait_event(self._done)
        self._batch.keep_for(stream)
        return self._batch
