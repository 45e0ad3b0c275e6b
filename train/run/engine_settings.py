"""DeepSpeed's configuration, from the options of a run."""

from caskd.train.config import TrainConfig
from caskd.train.data import accumulation_steps
from caskd.train.engine import Settings, deepspeed_settings, merge_settings, read_settings


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
