"""Peak memory of the loss: little more than a tile, independent of the number of rows."""

import pytest
import torch
from loss_cases import DEVICES, FAST, make_case, run_loss
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from caskd.train.loss.api import TeacherRows

WIDTH, VOCAB, TILE_ROWS = 16, 3000, 60
TILE = TILE_ROWS * VOCAB * 4


class PeakBytes(TorchDispatchMode):
    """The most that tensors made under it held at once, views of `inputs` apart."""

    def __init__(self, inputs: list[torch.Tensor]) -> None:
        super().__init__()
        self._inputs = {tensor.untyped_storage()._cdata for tensor in inputs}
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for made in result if isinstance(result, tuple | list) else (result,):
            if isinstance(made, torch.Tensor):
                storage = made.untyped_storage()
                if storage._cdata not in self._inputs:
                    self._alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self._alive = {key: held for key, held in self._alive.items() if not held[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self._alive.values()))
        return result


def peak_over_gradients(num_rows: int, impl: str, objective: str) -> int:
    case = make_case(num_rows, WIDTH, VOCAB, top_k=8, dtype=torch.float32)
    device = DEVICES.get(impl, "cpu")  # inputs go there first: their copies are not the loss'
    leaves = [tensor.to(device).requires_grad_() for tensor in (case.hidden, case.weight)]
    labels = case.labels.to(device)
    teacher = TeacherRows(*(column.to(device) for column in vars(case.teacher).values()))
    with PeakBytes([*leaves, labels, *vars(teacher).values()]) as seen:
        sums = run_loss(
            *leaves, labels, teacher, objective=objective, impl=impl, tile_rows=TILE_ROWS
        )
        sums.loss.backward()
    return seen.peak - sum(leaf.grad.nbytes for leaf in leaves)


@pytest.mark.parametrize("objective", ["dist", "cat-dist"])
@pytest.mark.parametrize("impl", FAST)
def test_no_third_tile(impl, objective):
    """The second tile: kernels write gradients to one, plain torch copies a block of rows."""
    peak = peak_over_gradients(180, impl, objective)
    assert TILE < peak < 2.2 * TILE


def test_memory_does_not_grow_with_the_rows(monkeypatch):
    monkeypatch.setattr("caskd.train.loss.checks._SLICE_ROWS", 100)
    few, many = (peak_over_gradients(num_rows, "torch", "cat-dist") for num_rows in (120, 1920))
    per_row = (many - few) / 1800
    assert per_row <= 8 * 4  # a few columns of int64, no cells and no logits
