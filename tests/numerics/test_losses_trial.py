"""`auto` takes the kernels only where a trial shows that they do what plain torch does."""

import warnings

import pytest
import torch
from loss_cases import DEVICES

from caskd.train.loss import kernel_check

pytest.importorskip("triton")
DEVICE = torch.device(DEVICES["triton"])


@pytest.fixture(autouse=True)
def untried():
    kernel_check.kernels_agree.cache_clear()
    yield
    kernel_check.kernels_agree.cache_clear()


def test_kernels_that_work_are_taken_without_a_word():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert kernel_check.kernels_agree(DEVICE)


def test_kernels_with_other_numbers_are_not(monkeypatch):
    from caskd.train.loss.triton_passes import TritonPasses

    differentiate_ = TritonPasses.differentiate_
    monkeypatch.setattr(
        TritonPasses, "differentiate_", lambda *args: differentiate_(*args).roll(1, dims=1)
    )
    with pytest.warns(RuntimeWarning, match="plain torch.*numbers differ"):
        assert not kernel_check.kernels_agree(DEVICE)


def test_nor_are_those_that_do_not_run(monkeypatch):
    from caskd.train.loss.triton_passes import TritonPasses

    def without_compiler(*args):
        raise RuntimeError("no C compiler\nfound")

    monkeypatch.setattr(TritonPasses, "read_", without_compiler)
    with pytest.warns(RuntimeWarning, match="RuntimeError: no C compiler found"):
        assert not kernel_check.kernels_agree(DEVICE)
