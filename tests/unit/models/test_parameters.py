"""Parameters: logical ones of quantised weights, active ones of a mixture of experts."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.records import write_jsonl
from helpers.tiny import save_tiny, tiny_tokenizer
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    DeepseekV2Config,
    LlamaConfig,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen2MoeConfig,
)
from transformers.integrations.bitnet import pack_weights

from caskd.models import build_model, count_parameters, quantization_of
from caskd.models.decoding import load_for_decoding
from caskd.precompute import PrecomputeConfig, precompute
from caskd.store import TeacherStore
from caskd.store.errors import UsageError
from caskd.train.model import check_config

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 50,
    "pad_token_id": 0,
}


def save_ternary(folder: Path) -> Path:
    """A checkpoint whose linear layers hold four weights in each byte, as buffers."""
    save_tiny(folder)
    packed: dict[str, torch.Tensor] = {}
    for name, weight in load_file(folder / "model.safetensors").items():
        if not name.endswith("proj.weight"):
            packed[name] = weight
            continue
        scale = 1 / weight.abs().mean()
        packed[name] = pack_weights((weight * scale).round().clamp(-1, 1))
        packed[name.replace(".weight", ".weight_scale")] = scale[None]
    save_file(packed, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "bitnet",
        "modules_to_not_convert": ["lm_head"],
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def ternary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_ternary(tmp_path_factory.mktemp("models") / "ternary")


@pytest.mark.slow
def test_packed_weights_count_as_the_weights_they_stand_for(ternary: Path, tmp_path: Path) -> None:
    loaded = load_for_decoding(str(ternary), "--model", device="cpu")
    whole = load_for_decoding(str(save_tiny(tmp_path / "whole")), "--model", device="cpu")
    assert sum(p.numel() for p in loaded.model.parameters()) < whole.identity["num_parameters"] / 2
    for name in ("num_parameters", "num_non_embedding_parameters"):
        assert loaded.identity[name] == whole.identity[name]
    assert loaded.identity["quantization"] == {"method": "bitnet", "bits": 2}
    assert not {"quantization", "num_active_parameters"} & whole.identity.keys()


def test_a_store_records_that_its_teacher_is_quantised(ternary: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "data.jsonl", [{"prompt": "ab", "response": "cd"}])
    for teacher, expected in (
        (ternary, {"method": "bitnet", "bits": 2}),
        (save_tiny(tmp_path / "whole"), None),
    ):
        store = str(tmp_path / f"store-{teacher.name}")
        data = (str(tmp_path / "data.jsonl"),)
        precompute(
            PrecomputeConfig(teacher=str(teacher), data=data, store=store, top_k=4, device="cpu")
        )
        assert TeacherStore.open(store).spec.identity["capture"]["quantization"] == expected


def test_predictions_record_quantised_weights_that_are_dequantised_when_opened(
    tmp_path: Path,
) -> None:
    folder = save_tiny(tmp_path, tie=False)
    weights = load_file(folder / "model.safetensors")
    for name, weight in [*weights.items()]:
        if name.endswith("proj.weight"):
            blocks = weight.view(weight.shape[0] // 16, 16, weight.shape[1] // 16, 16)
            scale = blocks.abs().amax((1, 3)) / 448
            packed = (blocks / scale[:, None, :, None]).reshape(weight.shape)
            weights[name] = packed.to(torch.float8_e4m3fn)
            weights[f"{name}_scale_inv"] = scale
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "weight_block_size": [16, 16],
    }
    (folder / "config.json").write_text(json.dumps(config))
    loaded = load_for_decoding(str(folder), "--model", device="cpu")
    assert loaded.identity["quantization"] == {"method": "fp8", "bits": 8}
    whole = load_for_decoding(str(save_tiny(tmp_path / "w", tie=False)), "--model", device="cpu")
    assert loaded.identity["num_parameters"] == whole.identity["num_parameters"]


def test_a_quantised_student_is_refused_before_training(ternary: Path) -> None:
    with pytest.raises(UsageError) as caught:
        check_config(str(ternary), 50, 8)
    for fact in (f"--student {ternary}", "bitnet, 2 bits", "bfloat16", "before quantisation"):
        assert fact in str(caught.value)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, ("gptq", 4)),
        ({"quant_method": "awq", "bits": 4}, ("awq", 4)),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, ("bitsandbytes", 4)),
        ({"quant_method": "bitsandbytes", "_load_in_8bit": True}, ("bitsandbytes", 8)),
        ({"load_in_8bit": True}, ("bitsandbytes", 8)),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, ("fp8", 8)),
        ({"quant_method": "mxfp4"}, ("mxfp4", 4)),
        ({"quant_method": "quanto", "weights": "int2"}, ("quanto", 2)),
        ({"quant_method": "torchao", "quant_type": "int4_weight_only"}, ("torchao", 4)),
        (
            {
                "quant_method": "torchao",
                "quant_type": {"default": {"_type": "Int8DynamicActivationInt4WeightConfig"}},
            },
            ("torchao", 4),
        ),
        (
            {"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 3}}},
            ("hqq", 3),
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {
                    "a": {"weights": {"num_bits": 8}, "input_activations": {"num_bits": 16}},
                    "b": {"weights": {"num_bits": 4}},
                },
            },
            ("compressed-tensors", [4, 8]),
        ),
        ({"quant_method": "another"}, ("another", None)),
    ],
)
def test_method_and_bits_of_a_config(values: dict[str, Any], expected: Any) -> None:
    found = quantization_of(LlamaConfig(quantization_config=values))
    assert found == dict(zip(("method", "bits"), expected, strict=True))
    assert quantization_of(LlamaConfig()) is None


def test_a_mixture_counts_the_experts_that_a_token_uses(tmp_path: Path) -> None:
    config = MixtralConfig(**SMALL, num_local_experts=8, num_experts_per_tok=2)
    model = MixtralForCausalLM(config)
    expert = 3 * 32 * 64
    count = count_parameters(model)
    assert count.total == model.num_parameters()
    assert count.routed == 2 * 8 * expert
    assert count.active == count.total - 2 * 6 * expert
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    identity = load_for_decoding(str(tmp_path), "--model", device="cpu").identity
    assert identity["num_active_parameters"] == count.active
    assert identity["num_parameters"] == count.total


GATED = 3 * 32 * 16  # gate, up and down
IDLE = {
    "qwen3_moe": (
        {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
         "mlp_only_layers": [1]},
        2 * 6 * GATED,
    ),
    "deepseek_v3": (
        {"n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
         "first_k_dense_replace": 2, "n_group": 2, "topk_group": 1, "q_lora_rank": 8,
         "kv_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8},
        1 * 6 * GATED,
    ),
    "llama4_text": (
        {"num_local_experts": 4, "num_experts_per_tok": 1, "intermediate_size": 16,
         "intermediate_size_mlp": 64, "interleave_moe_layer_step": 3, "head_dim": 8},
        1 * 3 * GATED,
    ),
    "gpt_oss": (
        {"num_local_experts": 4, "num_experts_per_tok": 1, "intermediate_size": 16, "head_dim": 8},
        3 * 3 * (GATED + 2 * 16 + 32),  # with biases
    ),
    "olmoe": ({"num_experts": 8, "num_experts_per_tok": 3, "intermediate_size": 16}, 3 * 5 * GATED),
    "granitemoe": (
        {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 16}, 3 * 2 * GATED,
    ),
    "jamba": (
        {"num_experts": 4, "num_experts_per_tok": 1, "intermediate_size": 16,
         "expert_layer_period": 2, "expert_layer_offset": 1, "use_mamba_kernels": False},
        1 * 3 * GATED,
    ),
}  # fmt: skip


@pytest.mark.parametrize("model_type", IDLE)
def test_idle_experts_equal_a_sum_by_hand(model_type: str) -> None:
    settings, idle = IDLE[model_type]
    config = AutoConfig.for_model(model_type, **{**SMALL, "num_hidden_layers": 3, **settings})
    count = count_parameters(build_model(config, "model", device="meta"))
    assert count.total - count.active == idle


def test_shared_experts_are_always_active() -> None:
    config = Qwen2MoeConfig(
        **SMALL,
        num_experts=6,
        num_experts_per_tok=1,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=48,
    )
    count = count_parameters(build_model(config, "model"))
    assert count.routed == 2 * 6 * 3 * 32 * 16
    assert count.active == count.total - count.routed * 5 // 6


def test_a_mixture_without_a_number_of_chosen_experts_has_no_active_count() -> None:
    config = DeepseekV2Config(**SMALL, n_routed_experts=4, num_experts_per_tok=None)
    assert count_parameters(build_model(config, "model", device="meta")).active is None


def test_a_dense_model_uses_all_its_parameters() -> None:
    count = count_parameters(build_model(LlamaConfig(**SMALL), "model"))
    assert (count.active, count.routed) == (count.total, 0)
