"""All that is known about a run, and all that can be wrong, before a weight is loaded."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from caskd.store import TeacherStore
from caskd.store.errors import UsageError
from caskd.train.adapters import LoraOptions, lora_options
from caskd.train.checkpoint import STATE, RunState, check_resumable, read_state
from caskd.train.config import TrainConfig
from caskd.train.deepspeed_settings import (
    Settings,
    deepspeed_settings,
    merge_settings,
    read_settings,
)
from caskd.train.manifest import CHECKPOINTS, newest_complete, verify
from caskd.train.metrics import METRICS_FILE
from caskd.train.objectives import Objective, resolve_objective
from caskd.train.order import ExampleOrder, accumulation_steps, blocks_of
from caskd.train.student import check_config, load_tokenizer
from caskd.train.trackers import check_trackers
from caskd.train.validation import open_eval_store


@dataclass(frozen=True, kw_only=True, eq=False)
class RunPlan:
    """A run that may start.

    Attributes:
        config: the options, with every default resolved.
        world_size: ranks.
        store: to learn from.
        order: of its examples.
        objective: rule and label weight.
        tokenizer: the student's.
        settings: DeepSpeed's.
        accumulation: micro-steps per step.
        eval_store: to measure on.
        lora: adapters to train in place of the weights.
        checkpoint: to resume from.
        done: what that checkpoint has behind it.
    """

    config: TrainConfig
    world_size: int
    store: TeacherStore
    order: ExampleOrder
    objective: Objective
    tokenizer: Any
    settings: Settings
    accumulation: int
    eval_store: TeacherStore | None
    lora: LoraOptions | None
    checkpoint: Path | None
    done: RunState | None

    @property
    def first_step(self) -> int:
        """Steps that are behind the run."""
        return self.done.step if self.done else 0

    def state_after(self, step: int, skipped_steps: int) -> RunState:
        """What a checkpoint after `step` steps says."""
        consumed = step * self.config.global_batch_size
        return RunState(
            step=step,
            epoch=consumed // self.order.num_examples,
            examples_consumed=consumed,
            skipped_steps=skipped_steps,
            world_size=self.world_size,
            store_digest=self.store.digest,
            teacher=self.store.spec.teacher,
            config=self.config.to_json(),
        )

    def summary(self) -> Iterator[str]:
        """One line per derived number."""
        config, spec, order = self.config, self.store.spec, self.order
        yield f"store        {spec.teacher}, {spec.num_rows:,} response tokens, top-{spec.top_k}"
        yield (
            f"examples     {order.num_examples:,} with response tokens of {spec.num_examples:,}, "
            f"in {len(order.blocks):,} shards"
        )
        yield (
            f"objective    {config.objective}: mask {self.objective.rule}, label weight "
            f"{self.objective.w:g}, tail {config.tail}"
        )
        yield (
            f"batch        {config.global_batch_size} examples = {config.micro_batch_size} x "
            f"{self.world_size} ranks x {self.accumulation} accumulation"
        )
        epochs = config.steps * config.global_batch_size / order.num_examples
        yield f"steps        {config.steps:,} = {epochs:.2f} epochs, from step {self.first_step:,}"
        yield (
            f"engine       ZeRO {config.zero_stage}, {config.dtype}, {config.optimizer}, "
            f"lr {config.lr:g} {config.schedule}"
        )
        if self.lora is not None:
            yield f"adapters     rank {self.lora.rank}, alpha {self.lora.alpha:g}"
        if self.eval_store is not None:
            yield f"measured on  {self.eval_store.spec.num_rows:,} response tokens"


def plan_run(config: TrainConfig) -> RunPlan:
    """Check the options against the store, the student, the ranks and what is in --out.

    Raises:
        CaskdError: whatever is wrong, in one line.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    dtype = config.dtype or ("bfloat16" if torch.cuda.is_available() else "float32")
    config = replace(config, dtype=dtype)
    objective = resolve_objective(config.objective, config.w)
    accumulation = accumulation_steps(config.global_batch_size, config.micro_batch_size, world_size)
    settings = _settings(config, accumulation)
    check_trackers(config)
    if not config.resume:
        check_unused(config.out)
    store = TeacherStore.open(config.store)
    index = store.index
    blocks = blocks_of(index.row_count, index.row_start, store.spec.shard_rows)
    if not blocks:
        raise UsageError(f"--store {config.store}: no example has a response token.")
    checkpoint = done = None
    if config.resume:
        checkpoint = newest_complete(config.out)
        verify(checkpoint, only=(STATE,))
        done = read_state(checkpoint)
        check_resumable(done, config=config.to_json(), store_digest=store.digest)
        if os.environ.get("RANK", "0") == "0":  # the other ranks start when this one goes on
            verify(checkpoint)
    tokenizer = load_tokenizer(config.student, store.spec)
    check_config(config.student, store.spec.vocab_size)
    return RunPlan(
        config=config,
        world_size=world_size,
        store=store,
        order=ExampleOrder(blocks=blocks, seed=config.seed),
        objective=objective,
        tokenizer=tokenizer,
        settings=settings,
        accumulation=accumulation,
        eval_store=open_eval_store(config.eval_store, store) if config.eval_store else None,
        lora=lora_options(config.to_json()),
        checkpoint=checkpoint,
        done=done,
    )


def _settings(config: TrainConfig, accumulation: int) -> Settings:
    settings = deepspeed_settings(
        global_batch_size=config.global_batch_size,
        micro_batch_size=config.micro_batch_size,
        accumulation_steps=accumulation,
        clip_grad_norm=config.clip_grad_norm,
        zero_stage=config.zero_stage,
        dtype=str(config.dtype),
        offload=config.offload,
    )
    path = config.deepspeed_config
    return settings if path is None else merge_settings(settings, read_settings(path), str(path))


def check_unused(out: Path) -> None:
    """Refuse a directory that holds a run already.

    Raises:
        UsageError: it does, or it is a file.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out}: expected a directory, found a file.")
    for name in (METRICS_FILE, CHECKPOINTS):
        if (out / name).exists():
            raise UsageError(
                f"--out {out}: holds a run already ({name}). Add --resume to go on with it, "
                "or give another --out."
            )
