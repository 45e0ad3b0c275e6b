"""`auto` uses the Triton kernels only if a trial shows that they agree with plain torch."""

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
    from caskd.train.loss.triton_kernels import TritonKernels

    differentiate_ = TritonKernels.differentiate_
    monkeypatch.setattr(
        TritonKernels, "differentiate_", lambda *args: differentiate_(*args).roll(1, dims=1)
    )
    with pytest.warns(RuntimeWarning, match="Triton.*results differ.*plain torch"):
        assert not kernel_check.kernels_agree(DEVICE)


def test_nor_are_those_that_do_not_run(monkeypatch):
    from caskd.train.loss.triton_kernels import TritonKernels

    def without_compiler(*args):
        raise RuntimeError("no C compiler\nfound")

    monkeypatch.setattr(TritonKernels, "read_", without_compiler)
    with pytest.warns(RuntimeWarning, match="RuntimeError: no C compiler found"):
        assert not kernel_check.kernels_agree(DEVICE)
