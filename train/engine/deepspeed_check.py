"""Check at start that the installed DeepSpeed has every attribute that this folder uses.

Some of them are private, and DeepSpeed may rename those in any release. A missing one would
otherwise show only when the first checkpoint is saved or restored.
"""

from collections.abc import Iterable
from operator import attrgetter
from typing import Any

from caskd.store.errors import UsageError

TESTED_VERSION = "0.19.8"
"""The DeepSpeed release that caskd's tests ran with last."""

MODULE_ATTRIBUTES = (
    "comm.comm.cdb",
    "comm.destroy_process_group",
    "init_distributed",
    "initialize",
    "utils.logger",
    "utils.safe_get_full_fp32_param",
    "utils.safe_get_full_optimizer_state",
    "utils.safe_set_full_fp32_param",
    "utils.safe_set_full_optimizer_state",
    "utils.safe_set_local_fp32_param",
    "utils.safe_set_local_optimizer_state",
    "zero.GatheredParameters",
)
"""Attributes of the package `deepspeed`."""

CPU_ATTRIBUTES = ("ops.__compatible_ops__",)
"""More of them, used on a CPU only. DeepSpeed probes its operators when this one is first read."""

_ENGINE_ATTRIBUTES = (
    "backward",
    "destroy",
    "get_global_grad_norm",
    "module",
    "optimizer.param_groups",
    "set_gradient_accumulation_boundary",
    "step",
    "was_step_applied",
)
_MASTERS_OF_STAGE_0 = ("optimizer.fp16_groups", "optimizer.fp32_groups", "optimizer.optimizer")
_MOMENTS_OF_STAGES_1_2 = (
    "optimizer._hp_optimizer_states_linked",
    "optimizer._lazy_init_hp_params_optimizer_state",
    "optimizer.optimizer",
)
PARAMETER_ATTRIBUTES_OF_STAGE_3 = ("ds_tensor",)
"""Attributes of a parameter that stage 3 divides among ranks."""

_PARTS_OF_STAGE_3 = ("optimizer.fp32_partitioned_groups_flat", "optimizer.optimizer")


def engine_attributes(stage: int, *, bfloat16: bool) -> tuple[str, ...]:
    """Attributes of a DeepSpeed engine that a run at this ZeRO stage uses, as dotted paths."""
    if stage == 0:
        return (*_ENGINE_ATTRIBUTES, *(_MASTERS_OF_STAGE_0 if bfloat16 else ()))
    if stage == 3:
        return (*_ENGINE_ATTRIBUTES, *_PARTS_OF_STAGE_3)
    float32 = () if bfloat16 else ("optimizer.check_grad_overflow",)
    return (*_ENGINE_ATTRIBUTES, *_MOMENTS_OF_STAGES_1_2, *float32)


def check_attributes(owner: Any, name: str, paths: Iterable[str], version: str) -> None:
    """Check that an object of DeepSpeed has attributes.

    Args:
        owner: the object.
        name: of the object, for the error.
        paths: attributes as dotted paths, such as `optimizer.param_groups`.
        version: of the installed DeepSpeed.

    Raises:
        UsageError: an attribute is missing.
    """
    for path in paths:
        try:
            attrgetter(path)(owner)
        except AttributeError:
            raise UsageError(
                f"deepspeed {version}: has no attribute {name}.{path}, which caskd needs; expected "
                f"deepspeed {TESTED_VERSION}, with which caskd is tested; "
                f"run pip install 'deepspeed=={TESTED_VERSION}'"
            ) from None
