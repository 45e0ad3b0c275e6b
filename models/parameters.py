"""How many parameters a model has, and how many of them one token uses."""

from dataclasses import dataclass
from typing import Any

from caskd.models.model_parts import embedding_of, output_head
from caskd.models.opening import build_model, quantization_of

_EXPERTS = frozenset({"experts", "input_linear", "output_linear"})
"""Parts of the names of weights that hold all routed experts; the last two are of JetMoe and of
older GraniteMoe. Names of experts that every token uses have a part that starts with `shared`."""
_PER_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k", "moe_k",
              "top_k_experts")  # fmt: skip
_NUM_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts",
                "num_moe_experts")  # fmt: skip


@dataclass(frozen=True)
class ParameterCount:
    """Logical parameters: a weight that is stored in 4 bits counts like one in 32."""

    total: int
    embedding: int
    """Those of the embedding and the head."""
    routed: int
    """Those of the experts of a mixture among which a router chooses."""
    active: int | None
    """Those that one token uses, with the chosen experts only; None where the config does not name
    how many are chosen."""


def count_parameters(model: Any) -> ParameterCount:
    """Count a causal LM's parameters; tied weights count once."""
    quantized = quantization_of(model.config) is not None
    whole = build_model(model.config, "model", device="meta") if quantized else model
    sizes = {name: parameter.numel() for name, parameter in whole.named_parameters()}
    if quantized:  # the copy has no adapter
        named = model.named_parameters()
        sizes |= {name: value.numel() for name, value in named if ".lora_" in name}
    embedding = {
        parameter
        for module in (embedding_of(whole), output_head(whole))
        if module
        for parameter in module.parameters()
    }
    total = sum(sizes.values())
    routed = sum(size for name, size in sizes.items() if _is_routed(name))
    share = _chosen_experts(whole.config) if routed else (0, 1)
    return ParameterCount(
        total=total,
        embedding=sum(parameter.numel() for parameter in embedding),
        routed=routed,
        active=None if share is None else total - routed + routed * share[0] // share[1],
    )


def _is_routed(name: str) -> bool:
    parts = name.split(".")
    is_shared = any(part.startswith("shared") for part in parts)
    return not is_shared and not _EXPERTS.isdisjoint(parts)


def _chosen_experts(config: Any) -> tuple[int, int] | None:
    """Experts per token, and experts per layer; None if the config does not name them."""
    text = config.get_text_config()
    parts = [text, getattr(text, "ffn_config", None)]
    chosen, experts = (
        next((n for part in parts for key in keys if (n := _count(part, key))), None)
        for keys in (_PER_TOKEN, _NUM_EXPERTS)
    )
    if chosen is None or experts is None:
        return None
    return min(chosen, experts), experts


def _count(part: Any, key: str) -> int | None:
    value = getattr(part, key, None)
    if isinstance(value, list | tuple):  # one per layer
        value = value[-1] if value else None
    return value if isinstance(value, int) and value > 0 else None
