"""Memory and division of the settings in docs/large-teachers.md, from configs of that size."""

from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, Qwen3MoeConfig

from caskd.models import check_divisible
from caskd.models.opening import build_model
from caskd.precompute.checkpoints.source import weight_bytes
from caskd.store.errors import UsageError
from caskd.store.io import bytes_text

PAGE = Path(__file__, "../../../../docs/large-teachers.md").resolve()
EIGHT = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32}
SEVENTY = {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80}
MIXTURE = {
    "hidden_size": 4096, "num_hidden_layers": 94, "num_attention_heads": 64, "head_dim": 128,
    "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 2560,
    "num_key_value_heads": 4, "vocab_size": 151936, "tie_word_embeddings": False,
}  # fmt: skip


def empty(config: Any) -> Any:
    return build_model(config, "MODEL", device="meta")


def llama(num_heads: int, **sizes: int) -> Any:
    return empty(
        LlamaConfig(
            **sizes, num_attention_heads=num_heads, num_key_value_heads=8, vocab_size=128256
        )
    )


def test_a_model_of_8b(tmp_path: Path) -> None:
    found = weight_bytes(llama(32, **EIGHT), tmp_path, "bfloat16")
    assert f"The weights take {bytes_text(found.total)} in bfloat16" in PAGE.read_text()


def test_a_model_of_70b_over_eight_ranks(tmp_path: Path) -> None:
    model = llama(64, **SEVENTY)
    check_divisible(model, 8, "MODEL")
    found = weight_bytes(model, tmp_path, "bfloat16", 8)
    text = f"{found.total / 1e9:.0f} GB in bfloat16, {bytes_text(found.per_device)} on each of 8"
    assert text in PAGE.read_text()


def test_a_mixture_of_400b_over_two_machines(tmp_path: Path) -> None:
    model = empty(Qwen3MoeConfig(**MIXTURE))
    found = weight_bytes(model, tmp_path, "bfloat16")
    assert found.num_active is not None
    page = " ".join(PAGE.read_text().split())
    billions = [f"{n / 1e9:.0f} billion" for n in (found.num_parameters, found.num_active)]
    assert f"Its {billions[0]} parameters, {billions[1]} of them active per token" in page
    assert f"take {found.total / 1e9:.0f} GB in bfloat16" in page
    with pytest.raises(UsageError, match="16"):
        check_divisible(model, 16, "MODEL")
