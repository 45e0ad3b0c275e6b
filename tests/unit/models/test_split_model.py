"""Body and head of a model give the whole model's logits, whatever it does after its head."""

import pytest
import torch
from helpers.tiny import tiny_model, tiny_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

from caskd.models import SplitModel, check_matrix, check_split
from caskd.models.head_forms import HeadForm
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
    "modernbert-decoder": {},
    "bert": {"is_decoder": True},
    "llama4_text": {
        "head_dim": 8,
        "num_local_experts": 2,
        "intermediate_size_mlp": 64,
    },
    "mamba": {"state_size": 8},
    "mamba2": {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1},
    "falcon_mamba": {"state_size": 8},
    "inkling_text": {},
}


def build(name, **changes):
    torch.manual_seed(0)
    options = {**ARCHITECTURES[name], **changes}
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


FORMS = {
    "gemma2": HeadForm(softcap=0.5),
    "granite": HeadForm(divisor=3.0),
    "cohere": HeadForm(multiplier=0.2),
    "hyperclovax": HeadForm(multiplier=3.0),
    "falcon_h1": HeadForm(multiplier=0.3),
    "recurrent_gemma": HeadForm(softcap=0.5),
}


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_the_form_is_found_by_trying_with_weights_and_without(name):
    expected = FORMS.get(name, HeadForm())
    with torch.device("meta"):
        empty = build(name)
    assert SplitModel(build(name), "--teacher").form == expected
    split = SplitModel(empty, "--teacher")
    assert (split.form, split.width, split.num_ids) == (expected, 40, 40)


def test_what_a_model_does_before_its_head_is_its_own():
    """Layers in the head, scales before it, and another dtype than that of the states."""
    for name in ("modernbert-decoder", "bert", "inkling_text"):
        model = build(name)
        split = SplitModel(model, "--teacher")
        assert split.form == HeadForm()
        check_split(model, split)


@pytest.mark.parametrize("name", ["mamba", "mamba2", "falcon_mamba"])
def test_states_and_head_of_two_dtypes(name):
    model = build(name).to(torch.bfloat16)
    split = SplitModel(model, "--teacher")
    check_split(model, split)
    assert split.hidden(torch.arange(5)[None]).dtype == torch.bfloat16


@torch.no_grad()
def test_columns_that_a_model_cuts_off_have_no_logits():
    model = build("inkling_text", unpadded_vocab_size=37)
    split = SplitModel(model, "--teacher")
    assert (split.width, split.num_ids, len(split.weight)) == (37, 37, 37)
    assert split.logits(split.hidden(torch.arange(5)[None])[0]).shape == (5, 37)
    check_split(model, split)


class OtherHead(torch.nn.Module):
    """Something that is no scale and no cap."""

    def __init__(self, head, change):
        super().__init__()
        self.head = head
        self.change = change

    def forward(self, hidden):
        return self.change(self.head(hidden))


@pytest.mark.parametrize(
    "change",
    [
        torch.nn.functional.softplus,
        torch.Tensor.square,
        torch.Tensor.neg,
        lambda product: product + 0.5,
        lambda product: product.clamp(max=20.0),
        lambda product: product.log_softmax(dim=-1),
        lambda product: product.masked_fill(torch.arange(40) == 3, float("-inf")),
        lambda product: product.flip(-1),
        lambda product: product[..., 1:],
        lambda product: torch.cat([product, product], dim=-1),
        lambda product: product * torch.linspace(1, 2, 40),
    ],
)
def test_a_head_that_does_something_else_is_refused(change):
    model = build("llama")
    head = model.lm_head
    model.lm_head = OtherHead(head, change)
    model.get_output_embeddings = lambda: head
    with pytest.raises(UsageError, match="--student x: LlamaForCausalLM changes the product"):
        SplitModel(model, "--student x")


class Doubled(torch.nn.Linear):
    """A head whose product is not that of its weight."""

    def forward(self, hidden):
        return 2 * super().forward(hidden)


def test_a_head_that_is_more_than_its_weight_is_refused_where_the_loss_reads_the_weight():
    model = build("llama")
    check_matrix(SplitModel(model, "--student"))
    model.lm_head.__class__ = Doubled
    split = SplitModel(model, "--student")
    check_split(model, split)
    with pytest.raises(UsageError, match=r"--student: LlamaForCausalLM .*more than a matrix"):
        check_matrix(split)


@pytest.mark.parametrize(
    ("change", "form"),
    [
        (lambda product: product / 3, HeadForm(divisor=3.0)),
        (lambda product: product * 0.3, HeadForm(multiplier=0.3)),
        (lambda product: torch.tanh(product / 30) * 30, HeadForm(softcap=30.0)),
        (lambda product: 5 * torch.tanh(2 * product / 5), HeadForm(multiplier=2.0, softcap=5.0)),
    ],
)
def test_an_operation_that_no_config_names_is_found(change, form):
    model = build("llama")
    head = model.lm_head
    model.lm_head = OtherHead(head, change)
    model.get_output_embeddings = lambda: head
    split = SplitModel(model, "--student")
    values = torch.linspace(-90, 90, 400).reshape(10, 40)
    assert torch.equal(split.form.logits(values), form.logits(values))
    check_split(model, split)


def test_a_model_whose_head_is_not_called_once_per_token_is_refused():
    model = build("llama")
    model.get_output_embeddings = lambda: model.model.layers[0].mlp.gate_proj
    with pytest.raises(UsageError, match="--student: LlamaForCausalLM"):
        SplitModel(model, "--student")


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


def test_a_form_by_hand():
    product = torch.tensor([[2.0, -8.0]])
    form = HeadForm(2.0, 0.5, None)
    assert form.scale == 0.25
    assert form.logits(product).tolist() == [[0.5, -2.0]]
    expected = 3.0 * torch.tanh(torch.tensor([[0.5, -2.0]]) / 3.0)
    torch.testing.assert_close(HeadForm(2.0, 0.5, 3.0).logits(product), expected)


def test_scale_stands_for_divisor_and_multiplier():
    assert HeadForm().scale is None
    assert HeadForm(multiplier=3.0).scale == 3.0
    assert HeadForm(divisor=4.0).scale == 0.25


def test_a_model_without_a_head_is_refused():
    with pytest.raises(UsageError, match="--teacher: LlamaModel has no separate body and head"):
        SplitModel(tiny_model(tiny_tokenizer()).model, "--teacher")
