"""A batch of a capture is handed to the device without a wait of the host."""

import numpy as np
import pytest
import torch
from helpers.tiny import save_tiny
from helpers.waits import WaitError, no_waits

from caskd.precompute.checkpoints import find_checkpoint
from caskd.precompute.rows import topk
from caskd.precompute.rows.passes import TorchPasses
from caskd.precompute.rows.targets import SampledTargets, TopKTargets
from caskd.precompute.teacher.transformers_teacher import TransformersTeacher
from caskd.store.corpus import num_rows
from caskd.store.write import ShardExample


def example(length, response):
    mask = np.repeat([0, 1], [length - response, response]).astype(np.uint8)
    tokens = (np.arange(length) * 7 % 50).astype(np.uint32)
    return ShardExample(0, tokens, mask, 0, num_rows(mask))


@pytest.mark.parametrize("targets", [TopKTargets(4, 0.9), SampledTargets(5, 0)])
def test_a_batch_is_handed_in_without_a_wait(tmp_path, monkeypatch, targets):
    monkeypatch.setattr(topk, "passes_for", lambda device: TorchPasses(may_wait=False))
    teacher = TransformersTeacher(
        find_checkpoint(str(save_tiny(tmp_path / "big")), "auto"),
        vocab_size=50, targets=targets, device="cpu",
    )  # fmt: skip
    batch = [example(20, 13), example(14, 9), example(12, 3)]
    wanted = dict(teacher.rows(batch))  # the first batch checks the model, and waits
    with no_waits():
        rows = teacher.rows(batch)
    assert {name: values.tolist() for name, values in rows.items()} == {
        name: values.tolist() for name, values in wanted.items()
    }


@pytest.mark.parametrize(
    "wait",
    [
        lambda t: t.sum().item(), lambda t: bool((t > 0).all()), lambda t: t.tolist(),
        lambda t: t.nonzero(), lambda t: t[t > 0], lambda t: t.cpu(), lambda t: t.numpy(),
        lambda t: torch.equal(t, t), lambda t: t.unique(),
    ],
)  # fmt: skip
def test_the_watch_sees_waits(wait):
    with pytest.raises(WaitError), no_waits():
        wait(torch.arange(3))
