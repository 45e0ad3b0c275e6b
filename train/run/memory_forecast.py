"""Estimate the memory of a run per rank, before any weight is loaded."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from caskd.models import build_model, default_device, open_config
from caskd.train.loss import tile_bytes
from caskd.train.model import add_adapters
from caskd.train.run.plan import RunPlan

_ACTIVATION_BYTES = 17
"""Values that a transformer layer keeps for its backward per token and hidden channel, without
attention scores (arXiv 2205.05198 counts 34 bytes in 16 bits)."""

_OVERHEAD = 1.1
"""Factor for buckets, allocator fragments and so on."""


@dataclass(frozen=True, kw_only=True)
class RunSize:
    """Sizes and settings that decide the memory of a run.

    Attributes:
        num_parameters: of the student, adapters included.
        num_trained: trained parameters.
        largest_layer: parameters that stage 3 gathers at once.
        num_layers: transformer blocks of the student.
        hidden_size: width of the student.
        tokens: of the longest micro-batch.
        tile_bytes: of a tile of the loss and its gradient.
        value_bytes: bytes of a weight in the forward, 2 or 4.
        adam: whether the optimizer keeps two moments per weight; otherwise its state is negligible.
        stage: ZeRO stage.
        num_ranks: number of ranks.
        offload: whether optimizer state is in host memory.
        recompute: whether the backward computes activations again.
    """

    num_parameters: int
    num_trained: int
    largest_layer: int
    num_layers: int
    hidden_size: int
    tokens: int
    tile_bytes: int
    value_bytes: int
    adam: bool
    stage: int
    num_ranks: int
    offload: bool
    recompute: bool


@dataclass(frozen=True)
class Forecast:
    """Bytes per rank, on its device except `host`."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    host: float
    """Optimizer state in host memory, with offload."""

    @property
    def total(self) -> float:
        """Bytes on the device, with overhead."""
        return _OVERHEAD * (self.weights + self.gradients + self.optimizer + self.activations)


def forecast(size: RunSize) -> Forecast:
    """The memory of one rank."""
    weight_parts = size.num_ranks if size.stage >= 3 else 1
    gradient_parts = size.num_ranks if size.stage >= 2 else 1
    optimizer_parts = size.num_ranks if size.stage >= 1 else 1
    gathered = size.largest_layer * size.value_bytes if size.stage == 3 else 0
    weights = size.num_parameters * size.value_bytes / weight_parts + gathered
    # Stages 1 to 3 keep float32 masters in any dtype, and sum gradients in float32. Stage 0 keeps
    # masters only if the weights of the forward are not float32 themselves.
    masters = 4 if size.stage or size.value_bytes < 4 else 0
    gradients = size.num_trained * (4 if size.stage else size.value_bytes) / gradient_parts
    optimizer = size.num_trained * (masters + (8 if size.adam else 0)) / optimizer_parts
    per_layer = size.tokens * size.hidden_size * size.value_bytes
    kept = size.num_layers * per_layer * (1 if size.recompute else _ACTIVATION_BYTES)
    activations = kept + (_ACTIVATION_BYTES * per_layer if size.recompute else 0) + size.tile_bytes
    on_device = 0.0 if size.offload else optimizer
    return Forecast(weights, gradients, on_device, activations, optimizer - on_device)


def table(size: RunSize) -> Iterator[str]:
    """One line per ZeRO stage; the chosen stage is marked."""
    yield "memory       per rank, estimated: weights + gradients + optimizer + activations = total"
    for stage in (0, 1, 2, 3):
        bytes_ = forecast(replace(size, stage=stage, offload=size.offload and stage > 0))
        parts = (bytes_.weights, bytes_.gradients, bytes_.optimizer, bytes_.activations)
        host = f", and {_gib(bytes_.host)} GiB of host memory" if bytes_.host else ""
        mark = "  <- --zero-stage" if stage == size.stage else ""
        terms = " + ".join(_gib(part) for part in parts)
        yield f"  ZeRO {stage}     {terms} = {_gib(bytes_.total)} GiB{host}{mark}"


def remedies(size: RunSize, halved: str | None) -> list[str]:
    """Flags that would save memory, the most effective first.

    Args:
        halved: the flag that halves `tokens`; None if there is no such flag.
    """
    few = size.num_parameters // 100
    options: dict[str, RunSize] = {
        "--gradient-checkpointing": replace(size, recompute=True),
        "--offload optimizer": replace(size, offload=True, stage=max(1, size.stage)),
        "--zero-stage 3": replace(size, stage=3 if size.num_ranks > 1 else size.stage),
        "--dtype bfloat16": replace(size, value_bytes=2),
        "--lora-rank 16": replace(size, num_trained=min(size.num_trained, few)),
    }
    if halved is not None:
        options[halved] = replace(size, tokens=size.tokens // 2)
    now = forecast(size).total
    saved = {flag: now - forecast(other).total for flag, other in options.items()}
    helpful = [flag for flag, amount in saved.items() if amount > 0]
    return sorted(helpful, key=lambda flag: -saved[flag])


def size_of(plan: RunPlan) -> RunSize:
    """The size of a run, from the student's configuration only."""
    config = plan.config
    model_config = open_config(config.student, "--student")
    model = build_model(model_config, "--student", device="meta")
    if plan.lora is not None:
        with torch.device("meta"):
            add_adapters(model, plan.lora, config.student)
    counts = {p: p.numel() for p in model.parameters()}
    text_config = model_config.get_text_config()
    tokens = config.token_budget or config.micro_batch_size * plan.longest
    device = default_device()
    tile = min(tile_bytes(device), 4 * tokens * text_config.vocab_size)
    return RunSize(
        num_parameters=sum(counts.values()),
        num_trained=sum(count for p, count in counts.items() if p.requires_grad),
        largest_layer=max(counts.values()),
        num_layers=text_config.num_hidden_layers,
        hidden_size=text_config.hidden_size,
        tokens=tokens,
        tile_bytes=2 * tile,
        value_bytes=2 if config.dtype == "bfloat16" else 4,
        adam=config.optimizer == "adamw",
        stage=config.zero_stage,
        num_ranks=plan.world_size,
        offload=config.offload == "optimizer",
        recompute=config.gradient_checkpointing,
    )


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f}"
