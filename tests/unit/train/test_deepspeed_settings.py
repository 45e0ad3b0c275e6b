"""DeepSpeed's configuration from the flags, and the keys that a user's JSON may add."""

from pathlib import Path
from typing import Any

import pytest

from caskd.store.errors import UsageError
from caskd.train.engine import deepspeed_settings, merge_settings, read_settings


def ours(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "global_batch_size": 32,
        "micro_batch_size": 4,
        "accumulation_steps": 4,
        "clip_grad_norm": 1.0,
        "zero_stage": 2,
        "dtype": "float32",
    }
    return deepspeed_settings(**{**values, **changes})


def test_the_true_accumulation_is_in_it() -> None:
    settings = ours()
    assert settings["gradient_accumulation_steps"] == 4
    assert settings["train_batch_size"] == 32
    assert settings["zero_optimization"]["stage"] == 2


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_bfloat16_accumulates_in_float32(stage: int) -> None:
    settings = ours(dtype="bfloat16", zero_stage=stage)
    assert settings["bf16"]["enabled"] is True
    assert settings["data_types"] == {"grad_accum_dtype": "fp32"}


def test_other_keys_are_merged_and_auto_leaves_ours() -> None:
    theirs = {
        "zero_optimization": {"stage": 2, "reduce_bucket_size": 1000},
        "train_batch_size": "auto",
        "comms_logger": {"enabled": False},
    }
    merged = merge_settings(ours(), theirs, "f.json")
    assert merged["zero_optimization"] == {
        "stage": 2,
        "overlap_comm": False,
        "reduce_bucket_size": 1000,
    }
    assert merged["train_batch_size"] == 32
    assert merged["comms_logger"] == {"enabled": False}


@pytest.mark.parametrize(
    ("theirs", "flag"),
    [
        ({"train_batch_size": 8}, "--global-batch-size"),
        ({"train_micro_batch_size_per_gpu": 1}, "--micro-batch-size"),
        ({"zero_optimization": {"stage": 3}}, "--zero-stage"),
        ({"gradient_clipping": 0.5}, "--clip-grad-norm"),
        ({"bf16": {"enabled": True}}, "--dtype"),
        ({"fp16": {"enabled": True}}, "--dtype"),
        ({"optimizer": {"type": "Adam"}}, "--lr"),
        ({"scheduler": {"type": "WarmupLR"}}, "--warmup-steps"),
    ],
)
def test_a_key_that_contradicts_a_flag_is_refused(theirs: dict[str, Any], flag: str) -> None:
    with pytest.raises(UsageError, match=flag):
        merge_settings(ours(), theirs, "f.json")


@pytest.mark.parametrize("content", ["{", "[1]"])
def test_a_file_that_is_no_json_object_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "ds.json"
    path.write_text(content)
    with pytest.raises(UsageError, match=r"--deepspeed-config .*ds\.json"):
        read_settings(path)
    with pytest.raises(UsageError, match="No such file"):
        read_settings(tmp_path / "none.json")
