"""Divide a model over several processes by the plan that transformers has for its class.

Legend: N ranks, one process and device each.
"""

import re
from collections.abc import Mapping
from typing import Any

from caskd.store.errors import UsageError

_WHOLE_STYLES = frozenset(
    {"replicate", "replicated_with_grad_allreduce", "sequence_parallel", "mla_kv_a_proj",
     "all_reduce", "moe_tp_experts", "moe_identity_expert", "local_params"}
)  # fmt: skip
"""Styles of transformers that change what a module does, and leave its weights on every rank."""
_SUMMED_STYLES = frozenset({"rowwise", "rowwise_rep", "rowwise_split_input"})
"""Styles whose bias is added once, behind the sum, and is whole on every rank."""
_WRONG = frozenset({"HrmTextForCausalLM"})
"""Classes whose plan of transformers 5.23 computes other logits on two ranks than in one process,
found by trying tiny models of every class."""
_HEADS = ("num_attention_heads", "num_key_value_heads", "linear_num_key_heads",
          "linear_num_value_heads")  # fmt: skip


def check_divisible(model: Any, num_ranks: int, subject: str) -> None:
    """Refuse a model that transformers cannot divide over so many ranks.

    Args:
        model: a causal LM; may be on device `meta`.
        num_ranks: N.
        subject: the option and the checkpoint, for errors.

    Raises:
        UsageError: its class has no plan, its heads cannot be divided, or transformers is too old.
    """
    distributed_options(num_ranks)
    flag = f"--tensor-parallel {num_ranks}"
    if not plan_of(model):
        raise UsageError(
            f"{subject}: {type(model).__name__} has no tp_plan in transformers, which {flag} "
            "follows; expected a class with one, such as LlamaForCausalLM; pass --device-map auto "
            "to place its layers on several GPUs of one process, or capture from a server with "
            "--backend server"
        )
    if type(model).__name__ in _WRONG:
        raise UsageError(
            f"{subject}: the tp_plan of {type(model).__name__} computes other logits than one "
            f"process; expected equal ones; omit {flag}, or pass another model"
        )
    text = model.config.get_text_config()
    for field in _HEADS:
        heads = getattr(text, field, None)
        counts = heads if isinstance(heads, list | tuple) else [heads]
        if any(isinstance(count, int) and count % num_ranks for count in counts):
            raise UsageError(
                f"{subject}: {field} is {heads}, which {flag} does not divide; expected a divisor "
                f"of it; pass another --tensor-parallel"
            )


def distributed_options(num_ranks: int) -> dict[str, Any]:
    """Options of `from_pretrained` that divide a model over all ranks of torch.distributed.

    Raises:
        UsageError: transformers is too old.
    """
    from transformers import distributed

    config = getattr(distributed, "DistributedConfig", None)
    if "tp_size" not in getattr(config, "__dataclass_fields__", {}):
        raise UsageError(
            "--tensor-parallel: this transformers has no DistributedConfig(tp_size=N); expected a "
            "newer one; run pip install -U transformers"
        )
    return {"distributed_config": config(tp_size=num_ranks)}  # type: ignore[misc]


def plan_of(model: Any) -> Mapping[str, str]:
    """The plan of a model: names of modules or weights, `*` for a layer's number, to styles."""
    return dict(getattr(model, "tp_plan", None) or {})


def rank_parameters(model: Any, num_ranks: int) -> int:
    """The most parameters that one rank holds: its part of the divided weights, and all others."""
    plan = plan_of(model)
    return sum(
        -(-weight.numel() // num_ranks) if _is_divided(name, weight, plan) else weight.numel()
        for name, weight in model.named_parameters()
    )


def _is_divided(name: str, weight: Any, plan: Mapping[str, str]) -> bool:
    generic = re.sub(r"(?<=\.)\d+(?=\.)", "*", name)  # but not that of fc1
    style = plan.get(generic) or plan.get(generic.rpartition(".")[0])
    if style is None or style in _WHOLE_STYLES:
        return False
    return not (weight.dim() == 1 and style in _SUMMED_STYLES)
