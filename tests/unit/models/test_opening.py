"""Checkpoints: one line for every kind that does not open, and no code or random weights."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.tiny import save_tiny, write_jsonl
from safetensors.torch import load_file, save_file

from caskd.cli.main import main
from caskd.models import (
    build_model,
    config_digest,
    locate,
    open_config,
    open_model,
    open_tokenizer,
)
from caskd.models.decoding import load_for_decoding
from caskd.precompute.checkpoints import find_checkpoint
from caskd.store.errors import UsageError

OPENERS = [open_config, open_tokenizer, open_model, load_for_decoding]


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("models") / "sound", tie=False)


@pytest.fixture
def copy(sound, tmp_path):
    return Path(shutil.copytree(sound, tmp_path / "copy"))


def one_line(caught, *facts):
    text = str(caught.value)
    assert "\n" not in text
    for fact in facts:
        assert fact in text, text


def test_a_whole_checkpoint_opens_with_its_own_weights(sound):
    model, stored = open_model(sound, "--model"), load_file(sound / "model.safetensors")
    assert open_config(sound, "--model").model_type == "llama"
    assert len(open_tokenizer(sound, "--model")) == 50
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, stored[name])
    assert open_model(sound, "--model", dtype="bfloat16").dtype == torch.bfloat16


def test_a_built_model_has_the_shape_of_the_config(sound):
    config = open_config(sound, "--model")
    empty = build_model(config, "--model", device="meta")
    assert {weight.device.type for weight in empty.parameters()} == {"meta"}
    shapes = {name: weight.shape for name, weight in open_model(sound, "-").state_dict().items()}
    assert {name: weight.shape for name, weight in empty.state_dict().items()} == shapes
    assert build_model(config, "--model", dtype=torch.float16).dtype == torch.float16


def test_a_folder_is_located_by_its_last_name(sound):
    found = locate(f"{sound}/.", "--teacher")
    assert (found.folder.resolve(), found.name, found.revision) == (sound.resolve(), "sound", None)


@pytest.mark.parametrize("opener", [*OPENERS, locate])
@pytest.mark.parametrize("source", ["./none", "/no/such/folder", "../none", "~/none", "a/b/c"])
def test_a_path_without_a_folder_is_not_looked_up_on_the_hub(opener, source):
    with pytest.raises(UsageError) as caught:
        opener(source, "--model")
    one_line(caught, f"--model {source}", "no such folder")


@pytest.mark.parametrize("opener", OPENERS)
def test_a_folder_without_a_model_is_one_line(opener, tmp_path):
    with pytest.raises(UsageError) as caught:
        opener(tmp_path, "--student")
    one_line(caught, f"--student {tmp_path}: cannot open the", "expected a transformers")


def set_json(file, **values):
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


@pytest.mark.parametrize("opener", OPENERS)
def test_code_of_a_checkpoint_is_refused_and_never_run(opener, copy):
    ran = copy / "ran"
    code = f"open({str(ran)!r}, 'w')\nC = M = T = None\n"
    (copy / "evil.py").write_text(code)
    set_json(
        copy / "config.json",
        model_type="evil",
        auto_map={"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"},
    )
    set_json(
        copy / "tokenizer_config.json",
        tokenizer_class="Evil",
        auto_map={"AutoTokenizer": ["evil.T", None]},
    )
    with pytest.raises(UsageError) as caught:
        opener(copy, "--model")
    one_line(caught, f"--model {copy}: cannot open the", "remote code")
    assert not ran.exists()


def test_pickled_weights_are_refused(copy):
    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    with pytest.raises(UsageError) as caught:
        open_model(copy, "--model")
    one_line(caught, f"--model {copy}", "safetensors")
    with pytest.raises(UsageError, match=r"--teacher .*no \.safetensors file"):
        find_checkpoint(str(copy), "auto")


def without(copy, *names):
    weights = load_file(copy / "model.safetensors")
    for name in names:
        del weights[name]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})


def test_missing_weights_are_not_filled_with_random_numbers(copy):
    without(copy, "model.layers.1.mlp.up_proj.weight", "model.layers.1.mlp.down_proj.weight")
    for opener in (open_model, load_for_decoding):
        with pytest.raises(UsageError) as caught:
            opener(copy, "--model")
        one_line(caught, f"--model {copy}", "lacks 2 weights", "layers.1.mlp.down_proj")


def test_a_cut_file_and_another_shape_are_one_line(copy):
    whole = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(UsageError, match="cannot open the model") as caught:
        open_model(copy, "--model")
    one_line(caught, f"--model {copy}")
    (copy / "model.safetensors").write_bytes(whole)
    set_json(copy / "config.json", hidden_size=64)
    with pytest.raises(
        UsageError, match=r"weights have another shape .*expected \[50, 64"
    ) as caught:
        open_model(copy, "--model")
    one_line(caught, f"--model {copy}", "[50, 32]", "config.json")


def test_a_config_of_no_causal_lm_is_one_line(copy):
    set_json(copy / "config.json", model_type="clip_text_model")
    with pytest.raises(UsageError, match=r"--teacher .*cannot open the model") as caught:
        find_checkpoint(str(copy), "auto")
    one_line(caught, "causal LM")


def test_running_out_of_memory_is_its_own_error(sound, monkeypatch):
    def full(*args, **options):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", full)
    with pytest.raises(MemoryError, match="out of memory"):
        open_model(sound, "--model")
    with pytest.raises(UsageError, match=r"do not fit on cpu .*out of memory") as caught:
        load_for_decoding(str(sound), "--model", device="cpu")
    one_line(caught, f"--model {sound}", "--device", "--dtype bfloat16")


@pytest.mark.parametrize("command", ["predict", "eval --next-token", "train", "precompute"])
def test_commands_name_their_flag_and_end_with_2(command, tmp_path, capsys):
    data = write_jsonl(tmp_path / "data.jsonl", [{"prompt": "ab", "response": "c"}])
    golden = str(Path(__file__).resolve().parents[2] / "data" / "golden-v1-exact")
    words = {
        "predict": ["predict", "--data", str(data), "--out", "p.parquet", "--model"],
        "eval --next-token": ["eval", "--next-token", golden, "--out", "r", "--student"],
        "train": [
            "train",
            "--store",
            golden,
            "--out",
            str(tmp_path / "run"),
            "--steps",
            "1",
            "--student",
        ],
        "precompute": ["precompute", "--data", str(data), "--store", "s", "--teacher"],
    }[command]
    assert main([*words, "./none"]) == 2
    error = capsys.readouterr().err
    assert f"{words[-1]} ./none: no such folder" in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_a_hub_id_has_the_commit_as_its_revision(sound, tmp_path):
    """From the cache of the hub, which names snapshots by commit."""
    commit, root = "0123456789" * 4, tmp_path / "hub" / "models--team--sound"
    shutil.copytree(sound, root / "snapshots" / commit)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(commit)
    code = (
        "import json; from caskd.models import locate\n"
        "from caskd.models.decoding import load_for_decoding\n"
        "found = locate('team/sound', '--teacher')\n"
        "identity = load_for_decoding('team/sound', '--model', device='cpu').identity\n"
        "print(json.dumps([found.name, found.revision, found.folder.name, identity]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    *found, identity = json.loads(done.stdout.splitlines()[-1])
    assert found == ["team/sound", commit, commit]
    assert (identity["name"], identity["revision"]) == ("team/sound", commit)
    assert identity["weights_digest"] is None
    assert identity["config_digest"] == config_digest(sound)


@pytest.mark.parametrize(
    "opener", [open_model, lambda folder, _: find_checkpoint(str(folder), "auto")]
)
@pytest.mark.parametrize(
    ("settings", "facts"),
    [
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, ["modelopt", "transformers cannot"]),
        ({"bits": 4}, ["transformers cannot open"]),
        ({"quant_method": "aqlm"}, ["(aqlm)", "run pip install -U aqlm"]),
        ({"quant_method": "vptq"}, ["(vptq)", "run pip install -U vptq"]),
    ],
)
def test_quantised_weights_without_their_package_are_refused_at_the_door(
    opener, settings, facts, copy
):
    set_json(copy / "config.json", quantization_config=settings)
    with pytest.raises(UsageError) as caught:
        opener(copy, "--teacher")
    one_line(caught, f"--teacher {copy}", "quantised", *facts)


@pytest.mark.parametrize(
    ("name", "shape"), [("weight_scale", ()), ("bias", (32,)), ("weight_scale_inv", (1, 1))]
)
def test_weights_that_its_layers_leave_out_are_refused(name, shape, copy):
    weights = load_file(copy / "model.safetensors")
    left_over = f"model.layers.1.self_attn.q_proj.{name}"
    weights[left_over] = torch.ones(shape)
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UsageError) as caught:
        open_model(copy, "--model")
    one_line(caught, f"--model {copy}", "1 weights", left_over, "quantization_config")


def test_weights_of_parts_that_the_model_does_not_have_change_nothing(copy, sound):
    weights = load_file(copy / "model.safetensors")
    more = ("v_head.weight", "model.layers.2.mlp.up_proj.weight", "model.rotary_emb.inv_freq")
    weights |= {name: torch.ones(2) for name in more}
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    tokens = torch.tensor([[5, 6, 7]])
    found = [open_model(folder, "--model")(tokens).logits for folder in (copy, sound)]
    assert torch.equal(*found)
