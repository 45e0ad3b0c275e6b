"""Make DeepSpeed's configuration from the flags, and merge a user's JSON into it."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from caskd.store.errors import UsageError
from caskd.store.io import StrangeFileError, read_json_object
from caskd.train.config import TrainConfig
from caskd.train.data import accumulation_steps

Settings = dict[str, Any]

_FLAGS = {
    ("train_batch_size",): "--global-batch-size",
    ("train_micro_batch_size_per_gpu",): "--micro-batch-size",
    ("gradient_accumulation_steps",): "--global-batch-size and --micro-batch-size",
    ("gradient_clipping",): "--clip-grad-norm",
    ("zero_optimization", "stage"): "--zero-stage",
    ("zero_optimization", "offload_optimizer", "device"): "--offload",
    ("bf16", "enabled"): "--dtype",
    ("fp16", "enabled"): "--dtype (float16 is not supported)",
}


def engine_settings(config: TrainConfig, world_size: int) -> Settings:
    """DeepSpeed's configuration of a run, with the user's own merged into it."""
    if config.token_budget is None:
        micro, batch = config.micro_batch_size, config.global_batch_size
        accumulation = accumulation_steps(batch, micro, world_size)
    else:  # the number of micro-steps varies; DeepSpeed only needs to know that it exceeds 1
        micro, accumulation = 1, 2
        batch = micro * accumulation * world_size
    settings = deepspeed_settings(
        global_batch_size=batch,
        micro_batch_size=micro,
        accumulation_steps=accumulation,
        clip_grad_norm=config.clip_grad_norm,
        zero_stage=config.zero_stage,
        dtype=str(config.dtype),
        offload=config.offload,
    )
    path = config.deepspeed_config
    return settings if path is None else merge_settings(settings, read_settings(path), str(path))


def deepspeed_settings(
    *,
    global_batch_size: int,
    micro_batch_size: int,
    accumulation_steps: int,
    clip_grad_norm: float,
    zero_stage: int,
    dtype: str,
    offload: str = "none",
) -> Settings:
    """DeepSpeed's configuration as a dictionary.

    It contains the true number of accumulation steps. With 1 and several backwards, ZeRO-2 would
    keep only the last gradient (https://github.com/allenai/open-instruct/pull/1498).
    """
    settings: Settings = {
        "train_batch_size": global_batch_size,
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": accumulation_steps,
        "gradient_clipping": clip_grad_norm,
        "zero_optimization": {"stage": zero_stage, "overlap_comm": False},
        "bf16": {"enabled": dtype == "bfloat16"},
        "fp16": {"enabled": False},
        # Our optimizers are torch's. DeepSpeed's are compiled at their first use, for minutes.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
    }
    if dtype == "bfloat16" and zero_stage > 0:  # stage 0 can only accumulate in bfloat16
        settings["data_types"] = {"grad_accum_dtype": "fp32"}
    if offload == "optimizer":
        settings["zero_optimization"]["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    return settings


def read_settings(path: Path) -> Settings:
    """Read a user's DeepSpeed JSON.

    Raises:
        UsageError: the file cannot be read, or is no JSON object.
    """
    try:
        return read_json_object(path)
    except OSError as error:
        raise UsageError(
            f"--deepspeed-config {path}: could not read it ({error.strerror or error}); expected a "
            "DeepSpeed JSON file; pass its path"
        ) from None
    except StrangeFileError as error:
        raise UsageError(
            f"--deepspeed-config {path}: {error}; expected one JSON object; fix the file"
        ) from None


def merge_settings(ours: Settings, theirs: Mapping[str, Any], where: str) -> Settings:
    """Our settings with a user's keys added; the value "auto" keeps ours.

    Args:
        where: file of the user's settings, for the errors.

    Raises:
        UsageError: a key contradicts its flag.
    """
    for key in ("optimizer", "scheduler"):
        if key in theirs:
            raise UsageError(
                f"{where}: key {key!r} is not supported; expected no such key, because caskd sets "
                "it from --lr, --warmup-steps and --weight-decay; remove the key"
            )
    for path, value in _leaves(theirs, ()):
        expected = _at(ours, path)
        if path in _FLAGS and value not in ("auto", expected):
            raise UsageError(
                f"{where}: {'.'.join(path)} is {value!r}; expected {expected!r}, which "
                f"{_FLAGS[path]} gives; remove the key, or change the flag"
            )
    return _merged(ours, theirs)


def _merged(ours: Settings, theirs: Mapping[str, Any]) -> Settings:
    merged = dict(ours)
    for key, value in theirs.items():
        if isinstance(value, Mapping):
            before = ours.get(key)
            merged[key] = _merged(before if isinstance(before, dict) else {}, value)
        elif value != "auto":
            merged[key] = value
    return merged


def _leaves(
    value: Mapping[str, Any], path: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            yield from _leaves(inner, (*path, key))
        else:
            yield (*path, key), inner


def _at(settings: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        settings = settings.get(key) if isinstance(settings, dict) else None
    return settings
