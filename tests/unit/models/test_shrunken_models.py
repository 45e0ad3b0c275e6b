"""What a model's class does is known from its config: no weights are loaded for it."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers import architectures
from helpers.captures import config_for
from helpers.tiny import save_tiny, write_jsonl
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

from caskd.cli.main import main
from caskd.models.shrunken_models import _copies, check_class
from caskd.precompute import precompute
from caskd.store.errors import UsageError


def config_of(name, **changes):
    kind, options = architectures.ARCHITECTURES[name]
    config = AutoConfig.for_model(kind, **{**options, **changes})
    config.vocab_size = 50
    return config


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "mamba", "bart", "bert", "rwkv"])
def test_causal_classes_pass(name):
    check_class(config_of(name), "--teacher")


@pytest.mark.parametrize("name", ["bert-encoder", "gemma3-bidirectional", "xlnet", "cpmant"])
def test_classes_that_see_later_tokens_are_refused(name):
    with pytest.raises(UsageError, match=r"--teacher x: \w+ is not causal"):
        check_class(config_of(name), "--teacher x")


@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "deepseek_v3", "mixtral", "falcon_h1"])
def test_models_of_many_billions_have_a_small_copy(kind):
    sizes = {"num_hidden_layers": 40, "hidden_size": 4096} if kind == "llama" else {}
    config = AutoConfig.for_model(kind, **sizes)
    before = config.to_json_string()
    model = next(_copies(config, "--teacher"))
    assert sum(parameter.numel() for parameter in model.parameters()) < 20_000_000
    assert config.to_json_string() == before


def test_a_layer_of_each_type_is_kept():
    config = AutoConfig.for_model("gemma3_text", num_hidden_layers=12)
    model = next(_copies(config, "--teacher"))
    assert set(model.config.layer_types) == set(config.layer_types)


def test_random_numbers_of_the_caller_are_left_alone():
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    check_class(LlamaConfig(**architectures.COMMON, vocab_size=50), "--student")
    assert torch.equal(torch.rand(3), expected)


def test_learned_positions_end_and_rotary_ones_do_not():
    with pytest.raises(UsageError, match=r"GPT2LMHeadModel takes at most 8 tokens.* has 9"):
        check_class(config_of("gpt2", n_positions=8), "--student x", longest=9)
    check_class(config_of("gpt2", n_positions=9), "--student", longest=9)
    check_class(config_of("llama", max_position_embeddings=8), "--student", longest=9)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("models") / "sound", tie=False)


@pytest.fixture(scope="module")
def store(sound, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")
    return str(precompute(config_for(sound, folder)).root)


def weights(folder, change):
    found = load_file(folder / "model.safetensors")
    change(found)
    save_file(found, folder / "model.safetensors", metadata={"format": "pt"})


def settings(folder, **values):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def without_head(folder):
    weights(folder, lambda found: found.pop("lm_head.weight"))


def another_shape(folder):
    weights(folder, lambda found: found.update({"model.norm.weight": torch.ones(5)}))


def cut(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def in_shards(folder):
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20KB")


def without_shard(folder):
    in_shards(folder)
    sorted(folder.glob("model-*.safetensors"))[1].unlink()


def index_of_other_files(folder):
    in_shards(folder)
    file = folder / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    index["weight_map"]["lm_head.weight"] = "none.safetensors"
    file.write_text(json.dumps(index))


def pickles_beside_others(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    save_file({"x": torch.ones(2)}, folder / "other.safetensors")


def without_quantiser(folder):
    settings(folder, quantization_config={"quant_method": "gptq", "bits": 4})


def unknown_quantiser(folder):
    settings(folder, quantization_config={"quant_method": "magic"})


def bidirectional(folder):
    architectures.save("gemma3-bidirectional", folder)


def without_tokenizer(folder):
    for file in folder.glob("tokenizer*"):
        file.unlink()


DAMAGES = {
    without_head: ("lacks 1 weights", "lm_head.weight"),
    another_shape: ("model.norm.weight", "[5]", "[32]"),
    cut: ("cannot open the model",),
    without_shard: ("cannot open the model", "model-00002-of"),
    index_of_other_files: ("cannot open the model", "none.safetensors"),
    pickles_beside_others: ("cannot open the model", "safetensors"),
    without_quantiser: ("gptq", "quantised"),
    unknown_quantiser: ("magic", "quantised"),
    bidirectional: ("Gemma3ForCausalLM is not causal",),
    without_tokenizer: ("cannot open the tokenizer",),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("command", ["plan", "train"])
def test_plan_and_dry_run_refuse_what_would_not_run(
    damage, command, sound, store, tmp_path, capsys
):
    folder = Path(shutil.copytree(sound, tmp_path / "copy"))
    damage(folder)
    data = write_jsonl(tmp_path / "data.jsonl", [{"prompt": "ab", "response": "c"}])
    words = {
        "plan": ["plan", "--data", str(data), "--store", str(tmp_path / "s"), "--teacher"],
        "train": ["train", "--store", store, "--out", str(tmp_path / "run"), "--steps", "1",
                  "--student"],
    }[command]  # fmt: skip
    capsys.readouterr()
    assert main([*words, str(folder), "--dry-run"]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("caskd")]
    assert len(lines) == 1
    for fact in (words[-1], *DAMAGES[damage]):
        assert fact in lines[0], lines[0]
    assert not (tmp_path / "s").exists()
    assert not (tmp_path / "run").exists()


def test_a_device_that_is_missing_is_refused_by_plan(sound, tmp_path, capsys):
    data = write_jsonl(tmp_path / "data.jsonl", [{"prompt": "ab", "response": "c"}])
    words = ["plan", "--teacher", str(sound), "--data", str(data), "--store", str(tmp_path / "s")]
    assert main([*words, "--device", "cuda:99"]) == 2
    assert "--device cuda:99" in capsys.readouterr().err
