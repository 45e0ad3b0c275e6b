"""Teachers quantised by packages that caskd does not depend on: skipped where one is missing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.captures import config_for
from helpers.packed import save_packed
from helpers.tiny import save_tiny, tiny_tokenizer
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TorchAoConfig

from caskd.precompute import precompute
from caskd.precompute.checkpoints import find_checkpoint
from caskd.store import TeacherStore
from caskd.store.errors import UsageError
from caskd.store.verify import verify_store

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # of the packages


def save_by_transformers(whole: Path, folder: Path, settings: Any) -> None:
    options = {"quantization_config": settings, "device_map": "cpu"}
    AutoModelForCausalLM.from_pretrained(whole, **options).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)


def save_bitsandbytes(whole: Path, folder: Path, bits: int) -> None:
    pytest.importorskip("bitsandbytes")
    chosen = {4: {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, 8: {"load_in_8bit": True}}
    save_by_transformers(whole, folder, BitsAndBytesConfig(**chosen[bits]))


def save_torchao(whole: Path, folder: Path, bits: int) -> None:
    quantization = pytest.importorskip("torchao.quantization")
    assert bits == 8
    save_by_transformers(whole, folder, TorchAoConfig(quantization.Int8WeightOnlyConfig()))


def save_compressed_tensors(whole: Path, folder: Path, bits: int, kind: str = "int") -> None:
    """Matrices with a scale per row, or per 32 weights at 4 bits; the head is not quantised."""
    package = pytest.importorskip("compressed_tensors")
    parts = package.quantization
    strategy = {8: {"strategy": "channel"}, 4: {"strategy": "group", "group_size": 32}}[bits]
    weights = parts.QuantizationArgs(num_bits=bits, type=kind, symmetric=True, **strategy)
    group = parts.QuantizationScheme(targets=["Linear"], weights=weights)
    settings = parts.QuantizationConfig(
        config_groups={"group_0": group}, ignore=["lm_head"], quantization_status="compressed",
        format="pack-quantized" if kind == "int" else "float-quantized",
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(whole)
    parts.apply_quantization_config(model, settings)
    largest = 2 ** (bits - 1) - 1 if kind == "int" else 448
    for module in model.modules():
        scale = getattr(module, "weight_scale", None)
        if scale is not None:
            groups = module.weight.data.reshape(len(scale), scale.shape[1], -1)
            scale.data.copy_(groups.abs().amax(-1) / largest)
    package.compressors.ModelCompressor(quantization_config=settings).compress_model(model)
    tiny_tokenizer().save_pretrained(folder)
    tensors = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((whole / "config.json").read_text())
    scheme = {**settings.model_dump(mode="json"), "quant_method": "compressed-tensors"}
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": scheme}))


def save_fp8(whole: Path, folder: Path, bits: int) -> None:
    save_compressed_tensors(whole, folder, bits, kind="float")


@pytest.mark.parametrize(
    ("method", "bits", "save"),
    [
        ("bitsandbytes", 4, save_bitsandbytes),
        ("bitsandbytes", 8, save_bitsandbytes),
        ("torchao", 8, save_torchao),
        ("compressed-tensors", 4, save_compressed_tensors),
        ("compressed-tensors", 8, save_compressed_tensors),
        ("compressed-tensors", 8, save_fp8),
    ],
)
def test_a_quantised_teacher_is_captured_as_transformers_computes_it(
    method: str, bits: int, save: Callable[[Path, Path, int], None], tmp_path: Path
) -> None:
    whole, folder = save_tiny(tmp_path / "whole", hidden=64, tie=False), tmp_path / "quantised"
    save(whole, folder, bits)
    records = [{"prompt": "ab", "response": "cdefgh"}, {"prompt": "x", "response": "yz 12"}]
    config = config_for(folder, tmp_path, records, shard_rows=128)
    precompute(config)
    assert verify_store(config.store).ok
    store = TeacherStore.open(config.store)
    assert store.spec.identity["capture"]["quantization"] == {"method": method, "bits": bits}

    before, after = (find_checkpoint(str(one), "auto").weights for one in (whole, folder))
    assert before is not None
    assert after is not None
    assert (after.num_parameters, after.num_active) == (before.num_parameters, before.num_active)
    smaller = after.total < before.total
    assert smaller != (method == "compressed-tensors")  # which is unpacked

    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    unquantised = AutoModelForCausalLM.from_pretrained(whole).eval()
    for example in range(len(records)):
        rows = store.read(np.array([example]))
        places = np.flatnonzero(rows.is_response) - 1
        ids = torch.from_numpy(rows.token_ids.astype(np.int64))[None]
        with torch.inference_mode():
            ours, theirs = (
                m(input_ids=ids).logits[0, places].float() for m in (model, unquantised)
            )
        bound = 2e-2 if (method, bits) == ("bitsandbytes", 8) else 1e-4  # it rounds the inputs, too
        expected = torch.logsumexp(ours, dim=-1).numpy()
        np.testing.assert_allclose(rows.logsumexp, expected, rtol=bound, atol=bound)
        assert float((ours - theirs).abs().max()) > 1e-3


@pytest.mark.timeout(1800)  # gptqmodel compiles its kernels at their first use
@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_packed_weights_are_captured_as_the_model_that_they_are(
    method: str, tmp_path: Path
) -> None:
    pytest.importorskip("optimum")
    pytest.importorskip("gptqmodel")
    whole = save_tiny(tmp_path / "whole", hidden=64, tie=False)
    plain = save_packed(whole, tmp_path / "packed", method)
    records = [{"prompt": "ab", "response": "cdefgh"}, {"prompt": "x", "response": "yz 12"}]
    stores = []
    for name, folder in (("packed", tmp_path / "packed"), ("plain", plain), ("whole", whole)):
        place = tmp_path / f"of-{name}"
        place.mkdir()
        stores.append(precompute(config_for(folder, place, records, dtype="float32")))
    ours, theirs, unquantised = (store.read(range(len(store))) for store in stores)
    identity = stores[0].spec.identity["capture"]
    assert identity["quantization"] == {"method": method, "bits": 4}
    for name in ("logsumexp", "label_logit"):
        close = {"rtol": 0, "atol": 2e-3}
        np.testing.assert_allclose(ours.column(name), theirs.column(name), **close)
        assert np.abs(ours.column(name) - unquantised.column(name)).max() > 1e-2
    counts = [
        find_checkpoint(str(folder), "auto").weights for folder in (tmp_path / "packed", plain)
    ]
    assert counts[0] is not None
    assert counts[1] is not None
    assert counts[0].num_parameters == counts[1].num_parameters


def test_gguf_is_refused_by_name(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path)
    (folder / "model.safetensors").rename(folder / "model-Q4_K_M.gguf")
    for teacher in (folder, folder / "model-Q4_K_M.gguf"):
        with pytest.raises(UsageError) as caught:
            find_checkpoint(str(teacher), "auto")
        for fact in ("GGUF (model-Q4_K_M.gguf)", "safetensors", "--backend server"):
            assert fact in str(caught.value)
