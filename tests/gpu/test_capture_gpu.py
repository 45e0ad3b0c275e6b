"""The capture on a GPU against the capture on the CPU."""

import numpy as np
import pytest
import torch
from helpers.captures import RECORDS, config_for
from helpers.tiny import save_tiny

from caskd.precompute import precompute
from caskd.precompute.rows.topk import row_fields

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
