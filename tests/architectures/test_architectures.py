"""Every class of causal LM is exact at every door, or refused; docs/models.md tells which.

The classes that people use run always; all of them with CASKD_ARCHITECTURES=all, as in
`just nightly`.
"""

import dataclasses
import os
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from architectures.table import committed, row_of
from architectures.tiny_configs import WINDOW
from architectures.trial import (
    EXACT,
    FLOAT32,
    WrongError,
    all_labels,
    check_fields,
    full_logits,
    outcomes,
    shared_store,
)
from caskd.store import TeacherStore

USED = (
    "bamba", "bart", "bloom", "cohere", "cohere2", "deepseek_v2", "deepseek_v3", "deepseek_v32",
    "ernie4_5", "exaone4", "falcon", "falcon_h1", "gemma", "gemma2", "gemma3_text", "gemma3n_text",
    "gemma4_text", "glm", "glm4", "glm4_moe", "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox",
    "gpt_oss", "granite", "granitemoe", "granitemoehybrid", "hunyuan_v1_dense", "jamba", "lfm2",
    "llama", "llama4_text", "mamba", "mamba2", "minimax", "ministral", "mistral", "mixtral", "mpt",
    "nemotron", "olmo", "olmo2", "olmo3", "olmoe", "opt", "phi", "phi3", "phimoe", "qwen2",
    "qwen2_moe", "qwen3", "qwen3_5_text", "qwen3_moe", "qwen3_next", "recurrent_gemma", "roberta",
    "smollm3", "stablelm", "starcoder2",
)  # fmt: skip
ALL = os.environ.get("CASKD_ARCHITECTURES") == "all"
FIELDS = (
    "topk_ids",
    "topk_logits",
    "logsumexp",
    "label_logit",
    "label_rank",
    "argmax",
    "tail_mass",
)
_ROPE = {"rope_theta": 10000.0, "original_max_position_embeddings": WINDOW}


def tie_experts(model: Any) -> None:
    """Give the first two experts of every layer the same score."""
    for name, parameter in model.named_parameters():
        if name.endswith(("gate.weight", "router.weight")):
            with torch.no_grad():
                parameter[1] = parameter[0]


VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "mamba-bfloat16": ("mamba", {"dtype": "bfloat16"}),
    "mamba2-bfloat16": ("mamba2", {"dtype": "bfloat16"}),
    "falcon_mamba-bfloat16": ("falcon_mamba", {"dtype": "bfloat16"}),
    "llama-bfloat16": ("llama", {"dtype": "bfloat16"}),
    "gemma-bfloat16": ("gemma", {"dtype": "bfloat16"}),
    "hy_v4-bfloat16": ("hy_v4", {"dtype": "bfloat16"}),
    "phi3-longrope": (
        "phi3",
        {
            "original_max_position_embeddings": WINDOW,
            "rope_parameters": {
                "rope_type": "longrope", "short_factor": [1.0] * 4, "factor": 4.0,
                "long_factor": [1.0, 3.0, 8.0, 20.0], **_ROPE,
            },
        },
    ),
    "llama-yarn": ("llama", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, **_ROPE}}),
    "mixtral-ties": ("mixtral", {"prepare": tie_experts}),
    "qwen3_moe-ties": ("qwen3_moe", {"prepare": tie_experts}),
}  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return shared_store(tmp_path_factory.mktemp("shared"))


@pytest.mark.parametrize("model_type", MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if ALL else USED)
def test_a_class_does_what_the_table_says(model_type, store, tmp_path):
    found = row_of(model_type, outcomes(model_type, store, tmp_path / "trial"))
    assert found.doors == committed()[model_type].doors, found.reason


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_is_exact(name, store, tmp_path):
    model_type, changes = VARIANTS[name]
    found = outcomes(model_type, store, tmp_path / "trial", **changes)
    assert {outcome.what for outcome in found} == {EXACT}, found


def test_the_table_names_every_class():
    rows = {row.model_type: row.name for row in committed().values()}
    missing = dict(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items() - rows.items())
    assert not missing, "run python tests/architectures/table.py"
    assert len(set(USED)) == 60


@pytest.mark.parametrize("field", FIELDS)
def test_the_trial_finds_a_wrong_field(field, store):
    teacher = AutoModelForCausalLM.from_pretrained(store.parent / "teacher")
    with torch.no_grad():
        whole = full_logits(teacher)
    read = TeacherStore.open(store)
    batch = read.read(np.arange(len(read)))
    whole, labels = whole[:, : read.spec.vocab_size], all_labels()
    check_fields(batch, whole, labels, FLOAT32)
    values = getattr(batch, field).copy()
    values[7] = values[7] + 1 if values.dtype.kind == "u" else values[7] + 0.01
    with pytest.raises(WrongError, match=field):
        check_fields(dataclasses.replace(batch, **{field: values}), whole, labels, FLOAT32)
