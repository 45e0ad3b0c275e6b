"""Body and head of a model give the whole model's logits, whatever it does after its head."""

import pytest
import torch
from helpers.tiny import tiny_model, tiny_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

from caskd.models import SplitModel, check_split, head_form
from caskd.models.head_forms import BY_MODEL_TYPE, GENERAL, HeadForm
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
    "hyperclovax": {"logits_scaling": 3.0},
    "falcon_h1": {
        "lm_head_multiplier": 0.3,
        "mamba_d_ssm": 32,
        "mamba_n_heads": 4,
        "mamba_d_head": 8,
        "mamba_d_state": 8,
        "mamba_chunk_size": 8,
    },
    "recurrent_gemma": {
        "logits_soft_cap": 0.5,
        "lru_width": 32,
        "attention_window_size": 16,
        "block_types": ["recurrent", "attention"],
    },
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
    split = SplitModel(model, "--teacher")
    assert split.num_ids == 40
    check_split(model, split)
    check_split(model, split, 40)
    check_split(model, split, 37)


@torch.no_grad()
@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_logits_of_rows_are_those_of_the_whole_model(name):
    model = build(name)
    split = SplitModel(model, "--teacher")
    ids = torch.arange(4, 16)[None]
    whole = model(input_ids=ids).logits[0].float()
    masked = split.logits(split.hidden(ids, torch.ones_like(ids))[0])
    numbered = split.logits(split.hidden(ids, position_ids=torch.arange(12)[None])[0], 30)
    torch.testing.assert_close(masked, whole, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(numbered, whole[:, :30], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["gemma2", "granite", "cohere", "hyperclovax", "falcon_h1", "recurrent_gemma"]
)
def test_an_operation_that_is_not_in_the_table_is_refused(name, monkeypatch):
    model = build(name)
    monkeypatch.setattr("caskd.models.head_forms.GENERAL", {})
    monkeypatch.setattr("caskd.models.head_forms.BY_MODEL_TYPE", {})
    with pytest.raises(UsageError, match=rf"--student x: .*{type(model).__name__} differ.* by \d"):
        check_split(model, SplitModel(model, "--student x"))


def test_a_head_that_does_something_else_is_refused():
    model = build("gemma2")
    head = model.lm_head
    model.lm_head = torch.nn.Sequential(head, torch.nn.Softplus())
    model.get_output_embeddings = lambda: head
    with pytest.raises(UsageError, match="Gemma2ForCausalLM differ"):
        check_split(model, SplitModel(model, "--student"))


class Caching(torch.nn.Module):
    """A layer that keeps a tensor of its first forward."""

    cached = None

    def forward(self, hidden):
        if self.cached is None:
            self.cached = torch.ones(hidden.shape[-1])
        return hidden * self.cached


def test_the_check_leaves_a_model_that_can_be_trained():
    model = build("llama")
    model.model.norm = Caching()
    split = SplitModel(model, "--student")
    check_split(model, split)
    split.logits(split.hidden(torch.arange(5)[None])[0]).sum().backward()
    assert model.lm_head.weight.grad is not None


class Config:
    """A config with some keys; its text model is itself."""

    def __init__(self, **keys):
        self.__dict__.update(keys)

    def get_text_config(self):
        return self


def test_a_form_by_hand():
    product = torch.tensor([[2.0, -8.0]])
    form = head_form(Config(logits_scaling=2.0, logit_scale=0.5, final_logit_softcapping=None))
    assert form == HeadForm(2.0, 0.5, None)
    assert form.scale == 0.25
    assert form.logits(product).tolist() == [[0.5, -2.0]]
    capped = head_form(Config(logits_scaling=2.0, logit_scale=0.5, final_logit_softcapping=3.0))
    expected = 3.0 * torch.tanh(torch.tensor([[0.5, -2.0]]) / 3.0)
    torch.testing.assert_close(capped.logits(product), expected)


def test_scale_stands_for_divisor_and_multiplier():
    assert head_form(Config()) == HeadForm()
    assert HeadForm().scale is None
    assert HeadForm(multiplier=3.0).scale == 3.0
    assert HeadForm(divisor=4.0).scale == 0.25


def test_one_architecture_may_read_a_key_differently(monkeypatch):
    table = {"mirror": {"logits_scaling": "multiply"}, "other": {"own_cap": "cap"}}
    monkeypatch.setattr("caskd.models.head_forms.BY_MODEL_TYPE", table)
    keys = {"logits_scaling": 4.0, "own_cap": 2.0}
    assert head_form(Config(model_type="mirror", **keys)) == HeadForm(multiplier=4.0)
    assert head_form(Config(model_type="other", **keys)) == HeadForm(divisor=4.0, softcap=2.0)
    assert head_form(Config(model_type="third", **keys)) == HeadForm(divisor=4.0)


def test_the_table_holds_known_operations_only():
    operations = {*GENERAL.values(), *(o for own in BY_MODEL_TYPE.values() for o in own.values())}
    assert operations <= {"divide", "multiply", "cap"}


def test_a_model_without_a_head_is_refused():
    with pytest.raises(UsageError, match="--teacher: LlamaModel has no separate body and head"):
        SplitModel(tiny_model(tiny_tokenizer()).model, "--teacher")
