"""A peft adapter on the teacher: its numbers, its identity, and every way not to fit."""

import json

import numpy as np
import pytest
import torch
from helpers.captures import TOP_K, config_for
from helpers.tiny import save_tiny
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from caskd.precompute import precompute
from caskd.precompute.planning.planner import plan
from caskd.store.errors import IdentityError, UsageError

RECORDS = [{"prompt": "ab", "response": "cde"}, {"prompt": "f", "response": "gh"}]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("models") / "big")


def adapted(teacher, targets=("q_proj", "up_proj")):
    """The teacher with a LoRA that changes what it says."""
    torch.manual_seed(0)
    config = LoraConfig(r=2, lora_alpha=8, target_modules=list(targets))
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(teacher), config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_()
    return model.eval()


@pytest.fixture(scope="module")
def adapter(teacher, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters") / "tuned"
    adapted(teacher).save_pretrained(folder)
    return folder


def test_rows_are_those_of_the_adapted_model(teacher, adapter, tmp_path):
    store = precompute(config_for(teacher, tmp_path, RECORDS, adapter=str(adapter)))
    with torch.inference_mode():
        batch = store.read([0])
        ids = torch.from_numpy(batch.token_ids.astype(np.int64))[None]
        logits = adapted(teacher)(ids).logits[0, batch.logit_positions]
        bare = AutoModelForCausalLM.from_pretrained(teacher)(ids).logits[0, batch.logit_positions]
    expected = logits.sort(dim=1, descending=True).values[:, :TOP_K].numpy()
    np.testing.assert_allclose(batch.topk_logits, expected, atol=2e-5)
    assert (bare - logits).abs().max() > 0.1  # the adapter does something
    said = store.spec.identity["teacher"]["adapter"]
    assert said["name"] == "tuned"
    assert str(tmp_path) not in json.dumps(store.spec.identity)


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_an_adapter_of_the_head_or_the_embedding_is_part_of_the_logits(target, tmp_path):
    teacher = save_tiny(tmp_path / "big", tie=False)
    model = adapted(teacher, [target])
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_embedding_" in name:
                weight.normal_()
    model.save_pretrained(tmp_path / "tuned", save_embedding_layers=True)
    config = config_for(teacher, tmp_path, RECORDS, adapter=str(tmp_path / "tuned"))
    batch = precompute(config).read([0])
    with torch.inference_mode():
        ids = torch.from_numpy(batch.token_ids.astype(np.int64))[None]
        logits = model(ids).logits[0, batch.logit_positions]
    expected = logits.sort(dim=1, descending=True).values[:, :TOP_K].numpy()
    np.testing.assert_allclose(batch.topk_logits, expected, atol=2e-5)


def test_another_adapter_or_none_is_another_teacher(teacher, adapter, tmp_path):
    plan(config_for(teacher, tmp_path, RECORDS, adapter=str(adapter)))
    with pytest.raises(IdentityError, match=r"teacher\.adapter"):
        plan(config_for(teacher, tmp_path, RECORDS))
    settings = adapter / "adapter_config.json"
    before = settings.read_text()
    try:
        moved = json.loads(before) | {"base_model_name_or_path": "/elsewhere/big"}
        settings.write_text(json.dumps(moved))
        plan(config_for(teacher, tmp_path, RECORDS, adapter=str(adapter)))
        settings.write_text(json.dumps(moved | {"lora_alpha": 16}))
        with pytest.raises(IdentityError, match=r"teacher\.adapter\.digest"):
            plan(config_for(teacher, tmp_path, RECORDS, adapter=str(adapter)))
    finally:
        settings.write_text(before)


def altered(adapter, tmp_path, change):
    """A copy of the adapter with other weights."""
    folder = tmp_path / "altered"
    folder.mkdir()
    (folder / "adapter_config.json").write_text((adapter / "adapter_config.json").read_text())
    weights = load_file(adapter / "adapter_model.safetensors")
    change(weights)
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


def drop_one(weights):
    del weights[min(weights)]


def widen_one(weights):
    weights[min(weights)] = torch.zeros(2, 33)


def add_one(weights):
    weights["base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight"] = torch.zeros(2, 32)


@pytest.mark.filterwarnings("ignore:Found missing adapter keys")
@pytest.mark.parametrize("change", [drop_one, widen_one, add_one])
def test_an_adapter_that_does_not_fit_is_one_line(teacher, adapter, tmp_path, change):
    folder = altered(adapter, tmp_path, change)
    with pytest.raises(UsageError, match=r"--adapter altered: .*does not fit") as caught:
        precompute(config_for(teacher, tmp_path, RECORDS, adapter=str(folder)))
    assert "\n" not in str(caught.value)


def test_pickles_and_added_tokens_are_refused(teacher, adapter, tmp_path):
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "adapter_model.bin").write_bytes(b"never read")
    with pytest.raises(UsageError, match=r"no adapter_model\.safetensors"):
        plan(config_for(teacher, tmp_path, RECORDS, adapter=str(pickled)))
    prompt = altered(adapter, tmp_path, lambda weights: None)
    settings = {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 8}
    (prompt / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(UsageError, match="PROMPT_TUNING adds tokens to the input"):
        plan(config_for(teacher, tmp_path, RECORDS, adapter=str(prompt)))
    with pytest.raises(UsageError, match=r"--adapter \./gone: no such folder"):
        plan(config_for(teacher, tmp_path, RECORDS, adapter="./gone"))
