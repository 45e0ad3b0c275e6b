"""`--tensor-parallel`: which flags, launchers and models it refuses, its messages, its memory."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.captures import config_for
from helpers.tiny import save_tiny, tiny_tokenizer
from transformers import (
    AutoConfig,
    BloomConfig,
    BloomForCausalLM,
    LlamaConfig,
    MixtralConfig,
    PhiConfig,
)

from caskd.models import build_model, check_divisible, rank_parameters
from caskd.precompute import PrecomputeConfig, plan
from caskd.precompute.backend_flags import check_backend
from caskd.precompute.checkpoints import find_checkpoint
from caskd.precompute.planning.plan_report import plan_lines
from caskd.precompute.planning.planner import plan_command
from caskd.precompute.teacher.rank_group import check_flags, packed, rank_group, unpacked
from caskd.precompute.workers.scheduling import WorkerInfo, worker_info
from caskd.store.errors import UsageError
from caskd.store.write import ShardExample

RANK_1 = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}


def config(**changes: Any) -> PrecomputeConfig:
    return PrecomputeConfig(
        teacher="t", data=("d",), store="s", **{"tensor_parallel": 2, **changes}
    )


@pytest.mark.parametrize(
    ("flags", "environ", "facts"),
    [
        ({}, {}, ["--tensor-parallel 2", "torchrun --nproc-per-node 2"]),
        ({"tensor_parallel": 4}, RANK_1, ["--tensor-parallel 4", "started 2", "--num-workers"]),
        ({"executor": "torchrun"}, RANK_1, ["--executor torchrun", "omit --executor torchrun"]),
        ({"executor": "ray"}, RANK_1, ["omit --executor ray", "--worker"]),
        ({"deterministic": True}, RANK_1, ["omit --deterministic"]),
        ({"device_map": "auto"}, RANK_1, ["omit --device-map"]),
        ({"device": "cuda:1"}, RANK_1, ["omit --device cuda:1"]),
        ({"adapter": "a"}, RANK_1, ["omit --adapter", "merge"]),
    ],
)
def test_what_contradicts_is_refused_with_the_next_command(
    flags: dict[str, Any], environ: dict[str, str], facts: Sequence[str]
) -> None:
    with pytest.raises(UsageError) as caught:
        check_flags(config(**flags), environ)
    assert all(fact in str(caught.value) for fact in facts), caught.value


def test_a_server_divides_its_model_itself() -> None:
    with pytest.raises(UsageError, match=r"--tensor-parallel.*omit"):
        check_backend(config(backend="server", url=("http://h",)))


def test_all_ranks_are_one_worker() -> None:
    assert worker_info(config(), {**RANK_1, "RANK": "0"}) == WorkerInfo()
    two = config(worker=1, num_workers=2)
    assert worker_info(two, {**RANK_1, "RANK": "0"}) == WorkerInfo(1, 2)


def test_one_process_needs_no_group() -> None:
    with rank_group(config(tensor_parallel=1), RANK_1) as group:
        assert group is None


def test_a_batch_arrives_as_it_was_sent() -> None:
    sent = [
        ShardExample(7, np.array([5, 2**31, 9], np.uint32), np.array([0, 1, 1], np.uint8), 4, 2),
        ShardExample(2, np.array([3], np.uint32), np.array([1], np.uint8), 0, 0),
    ]
    for ours, theirs in zip(sent, unpacked(packed(sent)), strict=True):
        assert (ours.index, ours.row_start, ours.row_count) == (
            theirs.index, theirs.row_start, theirs.row_count,
        )  # fmt: skip
        assert theirs.token_ids.dtype == np.uint32
        assert theirs.is_response.dtype == np.uint8
        np.testing.assert_array_equal(ours.token_ids, theirs.token_ids)
        np.testing.assert_array_equal(ours.is_response, theirs.is_response)


def test_a_class_without_a_plan_is_refused_at_the_door(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    small = BloomConfig(vocab_size=len(tokenizer), hidden_size=32, n_layer=1, n_head=2)
    BloomForCausalLM(small).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    find_checkpoint(str(tmp_path), "auto")
    with pytest.raises(UsageError) as caught:
        find_checkpoint(str(tmp_path), "auto", tensor_parallel=2)
    for fact in ("BloomForCausalLM", "tp_plan", "--device-map auto", "--backend server"):
        assert fact in str(caught.value)


def test_a_class_whose_plan_computes_other_logits_is_refused() -> None:
    model = build_model(AutoConfig.for_model("hrm_text"), "model", device="meta")
    with pytest.raises(UsageError, match=r"HrmTextForCausalLM computes other.*omit"):
        check_divisible(model, 2, "--teacher t")


def test_heads_that_no_rank_can_share_are_refused_at_the_door(tmp_path: Path) -> None:
    teacher = str(save_tiny(tmp_path))  # 4 heads, 2 of keys and values
    with pytest.raises(UsageError, match=r"num_key_value_heads is 2.*--tensor-parallel 4"):
        find_checkpoint(teacher, "auto", tensor_parallel=4)
    with pytest.raises(UsageError, match=r"num_attention_heads is 4.*--tensor-parallel 3"):
        find_checkpoint(teacher, "auto", tensor_parallel=3)


def test_quantised_weights_are_refused_at_the_door(tmp_path: Path) -> None:
    file = save_tiny(tmp_path) / "config.json"
    scheme = {"quant_method": "fp8", "weight_block_size": [16, 16]}
    file.write_text(json.dumps({**json.loads(file.read_text()), "quantization_config": scheme}))
    with pytest.raises(UsageError, match=r"fp8, 8 bits.*omit --tensor-parallel"):
        find_checkpoint(str(tmp_path), "auto", tensor_parallel=2)


def test_the_memory_of_a_rank_by_hand() -> None:
    """H 8, two heads of 4, inner width 16, 5 tokens, N 2."""
    sizes = {
        "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 5,
        "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 4, "pad_token_id": 0,
    }  # fmt: skip
    config = LlamaConfig(**sizes, tie_word_embeddings=False, attention_bias=True)
    model = build_model(config, "model", device="meta")
    check_divisible(model, 2, "--teacher t")
    attention = 3 * (8 * 8 + 8) // 2 + 8 * 8 // 2 + 8  # the bias behind the sum is whole
    assert rank_parameters(model, 2) == 2 * 5 * 8 // 2 + attention + 3 * 8 * 16 // 2 + 3 * 8
    mixture = MixtralConfig(**sizes, num_local_experts=2, num_experts_per_tok=1)
    model = build_model(mixture, "model", device="meta")
    total = sum(weight.numel() for weight in model.parameters())
    whole = 3 * 8 + 2 * 8  # norms and the router
    assert rank_parameters(model, 2) == whole + (total - whole) // 2
    del sizes["head_dim"]
    phi = PhiConfig(**sizes)
    model = build_model(phi, "model", device="meta")  # mlp.fc1 is a name, not a layer's number
    total = sum(weight.numel() for weight in model.parameters())
    whole = 2 * 2 * 8 + 8 + 8  # two norms, and the biases behind the two sums
    heads_bias = 5  # of an odd number, the first rank has one more
    assert rank_parameters(model, 2) == whole + (total - whole - heads_bias) // 2 + 3


def test_the_plan_prints_parameters_and_the_memory_of_each_rank(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from caskd.precompute.config import PlanConfig

    base = config_for(save_tiny(tmp_path / "big"), tmp_path, dry_run=True, tensor_parallel=2)
    plan_command(PlanConfig(**vars(base), json=True))
    out = capsys.readouterr().out
    facts = json.loads(out[out.index("{\n") :])  # behind what packages print when imported
    weights = facts["teacher"]["weights"]
    assert weights["total"] == 4 * weights["num_parameters"] == 4 * weights["num_active"]
    assert weights["total"] / 2 < weights["per_device"] < 0.55 * weights["total"]
    line = next(line for line in plan_lines(facts) if line.startswith("  weights"))
    assert f"{weights['num_parameters']:,} parameters" in line
    assert "on each of 2 ranks" in line
    assert plan(base).identity["capture"] == plan(
        PrecomputeConfig(**{**vars(base), "tensor_parallel": 1})
    ).identity["capture"]  # fmt: skip
