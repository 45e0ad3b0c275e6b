"""Copies to the device: order, values, one ahead, and who waits for whom, with a pretended GPU."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.waits import no_waits

from caskd.train.data import MicroBatch
from caskd.train.engine import device_transfer
from caskd.train.loss import TeacherRows


def batch(number: int) -> MicroBatch:
    rows = TeacherRows(torch.tensor([number]), *[None] * 5)
    ids = torch.tensor([[number, 0]])
    return MicroBatch(ids, None, torch.tensor([0]), torch.tensor([number]), rows)


class Stream:
    def __init__(self, name: str, seen: list[Any]) -> None:
        self.name, self.seen, self.num_events = name, seen, 0

    def record_event(self) -> str:
        self.num_events += 1
        self.seen.append(f"copy {self.num_events - 1}")
        return f"event {self.num_events - 1}"

    def wait_event(self, event: str) -> None:
        self.seen.append(f"{self.name} waits for {event}")

    def __enter__(self) -> None:
        self.seen.append(f"on {self.name}")

    def __exit__(self, *_: object) -> None:
        self.seen.append("off")


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What happens on a pretended GPU, in order."""
    seen: list[Any] = []
    side, main = Stream("side", seen), Stream("main", seen)
    fake = SimpleNamespace(stream=lambda stream: stream, current_stream=lambda _: main)
    monkeypatch.setattr(device_transfer, "torch", SimpleNamespace(cuda=fake))
    monkeypatch.setattr(device_transfer, "copy_stream", lambda device: side)
    monkeypatch.setattr(MicroBatch, "to", lambda self, device: self)
    recorded = lambda tensor, stream: seen.append(f"kept for {stream.name}")  # noqa: E731
    monkeypatch.setattr(torch.Tensor, "record_stream", recorded, raising=False)
    return seen


def test_the_next_copy_begins_before_a_batch_is_computed(seen: list[Any]) -> None:
    with no_waits():
        for number, _ in enumerate(
            device_transfer.on_device(map(batch, range(3)), torch.device("cuda"))
        ):
            seen.append(f"compute {number}")
    orders = [line for line in seen if line.startswith(("copy", "compute", "main"))]
    assert orders == [
        "copy 0", "copy 1", "main waits for event 0", "compute 0",
        "copy 2", "main waits for event 1", "compute 1",
        "main waits for event 2", "compute 2",
    ]  # fmt: skip
    for number in range(3):
        at = seen.index(f"copy {number}")
        # The event is one of the stream that copies.
        assert (seen[at - 1], seen[at + 1]) == ("on side", "off")


def test_every_tensor_is_kept_for_the_computing_stream(seen: list[Any]) -> None:
    list(device_transfer.on_device([batch(0)], torch.device("cuda")))
    assert seen.count("kept for main") == 4  # ids, index, labels, and the teacher's argmax
    assert "kept for side" not in seen


@pytest.mark.parametrize("num", [0, 1, 2, 5])
def test_order_and_values_are_those_of_the_batches(seen: list[Any], num: int) -> None:
    given = [batch(number) for number in range(num)]
    for device in ("cuda", "cpu"):
        got = list(device_transfer.on_device(iter(given), torch.device(device)))
        assert len(got) == num
        assert all(one is other for one, other in zip(got, given, strict=True))
