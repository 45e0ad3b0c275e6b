"""A reload of an export: the same weights bit for bit, and logits within a stated tolerance."""

import json

import pytest
import torch
from helpers.tiny import save_tiny, tiny_model, tiny_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

from caskd.models import SplitModel, open_model
from caskd.store.errors import CorruptError, UsageError
from caskd.train.model import LoraOptions, add_adapters, shared_adapter
from caskd.train.run import exporter
from caskd.train.run.exporter import check_reload, keep_padding_row, merge_adapters

YOUTU = {
    "vocab_size": 50, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 4, "kv_lora_rank": 8, "q_lora_rank": 8,
    "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "max_position_embeddings": 64,
    "pad_token_id": 3, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": True,
}  # fmt: skip


def youtu():
    """transformers sets the padding row of this class to zero whenever it opens a checkpoint."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("youtu", **YOUTU)).eval()
    with torch.no_grad():
        model.get_input_embeddings().weight.normal_()
    return model


def written(model, folder):
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def test_a_weight_that_changes_when_it_is_opened_is_found(tmp_path):
    model = youtu()
    with pytest.raises(CorruptError, match=r"embed_tokens.*YoutuForCausalLM"):
        check_reload(model, written(model, tmp_path))


def test_a_class_that_resets_its_padding_row_is_exported_without_a_padding_token(tmp_path):
    model = youtu()
    row = model.lm_head.weight[3].clone()
    [note] = keep_padding_row(model)
    assert "YoutuForCausalLM" in note
    folder = written(model, tmp_path)
    check_reload(model, folder)
    assert torch.equal(open_model(folder, "--model").lm_head.weight[3], row)
    assert json.loads((folder / "generation_config.json").read_text())["pad_token_id"] == 3


def test_other_classes_keep_their_padding_token(tmp_path):
    model = open_model(save_tiny(tmp_path / "model"), "--model", dtype="float32")
    assert model.config.pad_token_id is not None
    before = model.config.pad_token_id
    assert keep_padding_row(model) == []
    assert model.config.pad_token_id == before


def test_logits_may_differ_by_rounding_and_no_more(tmp_path, monkeypatch):
    folder = save_tiny(tmp_path / "model")
    model = open_model(folder, "--model", dtype="float32").eval()
    for noise, is_refused in ((4e-6, False), (1e-2, True)):

        def opened(*_, noise=noise, **__):
            other = open_model(folder, "--model", dtype="float32")
            other.lm_head.register_forward_hook(lambda _, __, product: product + noise)
            return other

        monkeypatch.setattr(exporter, "open_model", opened)
        if is_refused:
            with pytest.raises(CorruptError, match=r"logits differ .*by 0\.01.*at most"):
                check_reload(model, folder)
        else:
            check_reload(model, folder)


def adapted(tie, *targets):
    """A model with random adapters, and peft's wrapper of it."""
    model = tiny_model(tiny_tokenizer(), tie=tie, scale=1.0)
    wrapped = add_adapters(model, LoraOptions(4, 8.0, targets), "base")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in wrapped.parameters():
            if weight.requires_grad:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1)
    return model, wrapped


def test_adapters_of_a_tied_weight_are_refused():
    """Trained, the head has no adapter; merged, it would have that of the embedding."""
    with pytest.raises(UsageError, match=r"model.embed_tokens .* lm_head, .*omit embed_tokens"):
        adapted(True, "q_proj", "embed_tokens")
    model, _ = adapted(True, "q_proj")
    assert shared_adapter(model) is None


@torch.no_grad()
def test_a_merge_keeps_the_logits_that_were_trained(monkeypatch):
    for tie, targets in ((True, ["q_proj"]), (False, ["q_proj", "embed_tokens"])):
        model, wrapped = adapted(tie, *targets)
        ids = torch.arange(4, 20)[None]
        split = SplitModel(model, "--student")
        trained = split.logits(split.hidden(ids)[0])
        plain = merge_adapters(model, wrapped)(ids).logits[0]
        assert (plain - trained).abs().max() < 1e-5
    model, wrapped = adapted(False, "q_proj", "embed_tokens")
    monkeypatch.setattr(exporter, "merged", lambda wrapped: wrapped.unload())
    with pytest.raises(CorruptError, match="--lora-rank: merging"):
        merge_adapters(model, wrapped)
