"""The capture on a GPU against the capture on the CPU."""

import numpy as np
import pytest
import torch
from helpers.captures import RECORDS, config_for
from helpers.tiny import save_tiny

from caskd.precompute import precompute
from caskd.precompute.checkpoints import find_checkpoint
from caskd.precompute.rows.pass_check import passes_for
from caskd.precompute.rows.passes import TorchPasses
from caskd.precompute.rows.targets import SampledTargets, TopKTargets
from caskd.precompute.rows.topk import row_columns, row_fields
from caskd.precompute.teacher.transformers_teacher import TransformersTeacher
from caskd.store.corpus import num_rows
from caskd.store.write import ShardExample

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("kind", ["plain", "bfloat16"])
def test_row_fields_are_those_of_the_cpu(kind):
    logits = torch.randn(70, 5003, generator=torch.Generator().manual_seed(0)) * 4
    if kind == "bfloat16":  # ties everywhere, across the k-th place too
        logits = logits.bfloat16().float()
    labels = torch.arange(70) * 71
    there = row_fields(logits.cuda(), labels.cuda(), top_k=64)
    for name, here in row_fields(logits, labels, top_k=64).items():
        if here.dtype == np.float32:
            np.testing.assert_allclose(there[name], here, rtol=1e-5)
        else:
            np.testing.assert_array_equal(there[name], here)


@pytest.mark.parametrize(
    "options", [{"device": "cuda:0"}, {"device": "auto", "device_map": "auto"}]
)
@pytest.mark.parametrize("deterministic", [False, True])
def test_a_capture_on_the_gpu_equals_one_on_the_cpu(tmp_path, options, deterministic):
    teacher, batches = save_tiny(tmp_path / "big"), []
    for name, changes in (("cpu", {"device": "cpu"}), ("cuda", options)):
        (tmp_path / name).mkdir()
        config = config_for(teacher, tmp_path / name, deterministic=deterministic, **changes)
        batches.append(precompute(config).read(range(len(RECORDS))))
    here, there = batches
    np.testing.assert_allclose(there.topk_logits, here.topk_logits, atol=1e-3)
    np.testing.assert_allclose(there.logsumexp, here.logsumexp, atol=1e-3)
    assert (there.argmax == here.argmax).mean() > 0.99


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernels_are_in_use_and_give_the_columns_of_torch(dtype):
    passes = passes_for(torch.device("cuda"))
    assert type(passes).__name__ == "TritonPasses"
    logits = (torch.randn(70, 128_256, generator=torch.Generator().manual_seed(0)) * 4).to(dtype)
    logits[3, 9], logits[4, 128_255] = torch.nan, torch.inf
    logits, labels = logits.cuda(), torch.arange(70, device="cuda") * 1801
    ours, plain = (
        row_columns(logits, labels, top_k=64, passes=each)
        for each in (passes, TorchPasses(may_wait=False))
    )
    for name, values in plain.items():
        if values.dtype.is_floating_point:
            torch.testing.assert_close(ours[name], values, rtol=2e-5, atol=0)
        else:
            assert torch.equal(ours[name], values), name


@pytest.mark.parametrize("targets", [TopKTargets(4, 0.9), SampledTargets(5, 0)])
def test_a_batch_is_handed_in_without_a_wait(tmp_path, targets):
    teacher = TransformersTeacher(
        find_checkpoint(str(save_tiny(tmp_path / "big")), "auto"),
        vocab_size=50, targets=targets, device="cuda",
    )  # fmt: skip
    batch = []
    for length, response in ((20, 13), (14, 9), (12, 3)):
        mask = np.repeat([0, 1], [length - response, response]).astype(np.uint8)
        tokens = (np.arange(length) * 7 % 50).astype(np.uint32)
        batch.append(ShardExample(0, tokens, mask, 0, num_rows(mask)))
    wanted = dict(teacher.rows(batch))  # the first batch checks the model, and waits
    torch.cuda.set_sync_debug_mode("error")
    try:
        rows = teacher.rows(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for name, values in rows.items():
        np.testing.assert_array_equal(values, wanted[name])
