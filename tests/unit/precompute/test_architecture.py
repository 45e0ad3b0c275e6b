"""The two halves of a model give the whole model's logits, whatever it does after its head."""

import pytest
import torch
from helpers.tiny import save_tiny, tiny_model, tiny_tokenizer
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from caskd.models import SplitModel, check_split
from caskd.models.split_model import adjust_logits
from caskd.precompute.teacher.source import TransformersCheckpoint
from caskd.precompute.teacher.transformers_teacher import load_model
from caskd.store.errors import UsageError

SMALL = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
ARCHITECTURES = {
    "llama": {},
    "qwen2": {},
    "gemma2": {"final_logit_softcapping": 0.5, "head_dim": 8},
    "granite": {"logits_scaling": 3.0},
    "cohere": {"logit_scale": 0.2},
    "gpt_neox": {},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
}


def build(name):
    torch.manual_seed(0)
    options = ARCHITECTURES[name]
    config = AutoConfig.for_model(name, **{**({} if name == "gpt2" else SMALL), **options})
    if name == "gpt2":
        config.vocab_size, config.bos_token_id, config.eos_token_id = 40, 1, 2
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(20)
    return model


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_known_architectures_agree_with_their_whole(name):
    model = build(name)
    split = SplitModel(model)
    assert split.num_ids == 40
    check_split(model, split, 40)
    check_split(model, split, 37)


@pytest.mark.parametrize("name", ["gemma2", "granite", "cohere"])
def test_an_adjustment_that_is_not_known_is_refused(name, monkeypatch):
    model = build(name)
    monkeypatch.setattr("caskd.models.split_model.adjust_logits", lambda logits, config: logits)
    with pytest.raises(UsageError, match="gives other logits"):
        check_split(model, SplitModel(model), 40)


def test_adjustments_by_hand():
    logits = torch.tensor([[2.0, -8.0]])

    class Config:
        logits_scaling, logit_scale, final_logit_softcapping = 2.0, 0.5, None

    assert adjust_logits(logits, Config()).tolist() == [[0.5, -2.0]]
    Config.final_logit_softcapping = 1.0
    expected = torch.tanh(torch.tensor([[0.5, -2.0]]))
    torch.testing.assert_close(adjust_logits(logits, Config()), expected)


def test_a_model_without_a_head_is_refused():
    with pytest.raises(UsageError, match="no separate body and head"):
        SplitModel(tiny_model(tiny_tokenizer()).model)


def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path):
    folder = save_tiny(tmp_path / "torn", tie=False)
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    source = TransformersCheckpoint(folder, "torn", None, None, 49, "float32", "sdpa", 256)
    with pytest.raises(UsageError, match=r"lacks 1 weights.*layers\.1\.mlp\.up_proj"):
        load_model(source, torch.device("cpu"))
