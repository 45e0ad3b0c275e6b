"""All that is known about a run, and all that can be wrong, before a weight is loaded."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from caskd.store import TeacherStore
from caskd.store.errors import UsageError
from caskd.train.checkpoint import (
    CHECKPOINTS,
    STATE,
    RunState,
    check_resumable,
    newest_complete,
    read_state,
    verify,
)
from caskd.train.config import TrainConfig
from caskd.train.data import (
    Cut,
    MixedOrder,
    RandomMask,
    StoreMix,
    accumulation_steps,
    check_budget,
    read_fractions,
    shares,
)
from caskd.train.engine import Settings, deepspeed_settings, merge_settings, read_settings
from caskd.train.metrics import METRICS_FILE
from caskd.train.model import LoraOptions, check_config, load_tokenizer, lora_options
from caskd.train.objectives import Objective, Tail, resolve_objective, resolve_tail
from caskd.train.run.trackers import check_trackers
from caskd.train.run.validation import open_eval_store


@dataclass(frozen=True, kw_only=True, eq=False)
class RunPlan:
    """A run that may start.

    Attributes:
        config: the options, with every default resolved.
        world_size: ranks.
        store: to learn from; one or several.
        order: of the examples.
        objective: rule and label weight.
        mask: that keeps rows at random; None where the objective makes its own.
        tokenizer: the student's.
        settings: DeepSpeed's.
        cut: how a step is cut into forwards.
        eval_store: to measure on.
        lora: adapters to train in place of the weights.
        checkpoint: to resume from.
        done: what that checkpoint has behind it.
    """

    config: TrainConfig
    world_size: int
    store: StoreMix
    order: MixedOrder
    objective: Objective
    mask: RandomMask | None
    tokenizer: Any
    settings: Settings
    cut: Cut
    eval_store: TeacherStore | None
    lora: LoraOptions | None
    checkpoint: Path | None
    done: RunState | None

    @property
    def first_step(self) -> int:
        """Steps that are behind the run."""
        return self.done.step if self.done else 0

    @property
    def tail(self) -> Tail:
        """What becomes of the teacher's probability outside the top-k, if the store has one."""
        return resolve_tail(self.config.tail, self.store.spec.kind)

    @property
    def options(self) -> dict[str, Any]:
        """The options as the run's files keep them."""
        return _recorded(self.config, self.mask)

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
            teacher=self.store.teacher,
            config=self.options,
        )

    def summary(self) -> Iterator[str]:
        """One line per derived number."""
        config, order = self.config, self.order
        yield from self._of_stores()
        yield (
            f"examples     {order.num_examples:,} with response tokens of {sum(order.sizes):,}, "
            f"in {order.num_blocks:,} shards"
        )
        yield (
            f"objective    {config.objective}: mask {self.objective.rule}, label weight "
            f"{self.objective.w:g}, tail {self.tail}"
        )
        if self.mask is not None:
            kept = self.mask.fractions
            yield (
                f"mask         {kept.mean():.1%} of the rows at random, {kept.min():.1%} to "
                f"{kept.max():.1%} a step (fractions {self.mask.digest[:12]})"
            )
        yield f"batch        {config.global_batch_size} examples = {self._parts()}"
        epochs = config.steps * config.global_batch_size / order.num_examples
        of_one = f" = {epochs:.2f} epochs" * (len(order.orders) == 1)
        yield f"steps        {config.steps:,}{of_one}, from step {self.first_step:,}"
        yield (
            f"engine       ZeRO {config.zero_stage}, {config.dtype}, {config.optimizer}, "
            f"lr {config.lr:g} {config.schedule}"
        )
        if self.lora is not None:
            yield f"adapters     rank {self.lora.rank}, alpha {self.lora.alpha:g}"
        if self.eval_store is not None:
            yield f"measured on  {self.eval_store.spec.num_rows:,} response tokens"

    def _of_stores(self) -> Iterator[str]:
        num_examples = self.config.steps * self.config.global_batch_size
        each = zip(self.store.stores, self.order.orders, shares(self.store.weights), strict=True)
        for store, order, share in each:
            spec = store.spec
            line = f"store        {spec.teacher}, {spec.num_rows:,} response tokens, {spec.kept}"
            epochs = num_examples * share / order.num_examples
            of_several = f", {share:.1%} of the examples = {epochs:.2f} epochs ({store.name})"
            yield line + of_several * (len(self.store.stores) > 1)

    def _parts(self) -> str:
        config = self.config
        if config.token_budget is not None:
            return f"up to {config.token_budget:,} tokens x {self.world_size} ranks at a time"
        per_forward = config.micro_batch_size * self.world_size
        return (
            f"{config.micro_batch_size} x {self.world_size} ranks x "
            f"{config.global_batch_size // per_forward} accumulation"
        )


def plan_run(config: TrainConfig) -> RunPlan:
    """Check the options against the store, the student, the ranks and what is in --out.

    Raises:
        CaskdError: whatever is wrong, in one line.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    dtype = config.dtype or ("bfloat16" if torch.cuda.is_available() else "float32")
    config = replace(config, dtype=dtype)
    objective = resolve_objective(config.objective, config.w)
    settings = _settings(config, world_size)
    check_trackers(config)
    if not config.resume:
        check_unused(config.out)
    mask = None
    if config.keep_fraction_from is not None:
        mask = RandomMask(config.seed, read_fractions(config.keep_fraction_from, config.steps))
    store = StoreMix.open(config.store)
    config = replace(config, tail=resolve_tail(config.tail, store.spec.kind))
    order = store.order(config.seed)
    if config.token_budget is not None:
        longest = int(store.token_counts().max())
        check_budget(config.token_budget, config.global_batch_size, world_size, longest)
    checkpoint = done = None
    if config.resume:
        checkpoint = newest_complete(config.out)
        verify(checkpoint, only=(STATE,))
        done = read_state(checkpoint)
        check_resumable(done, config=_recorded(config, mask), store_digest=store.digest)
        if os.environ.get("RANK", "0") == "0":  # the other ranks start when this one goes on
            verify(checkpoint)
    tokenizer = load_tokenizer(config.student, store.spec)
    check_config(config.student, store.spec.vocab_size)
    return RunPlan(
        config=config,
        world_size=world_size,
        store=store,
        order=order,
        objective=objective,
        mask=mask,
        tokenizer=tokenizer,
        settings=settings,
        cut=Cut(
            world_size=world_size,
            micro_batch_size=config.micro_batch_size,
            token_budget=config.token_budget,
        ),
        eval_store=open_eval_store(config.eval_store, store.spec) if config.eval_store else None,
        lora=lora_options(config.to_json()),
        checkpoint=checkpoint,
        done=done,
    )


def _recorded(config: TrainConfig, mask: RandomMask | None) -> dict[str, Any]:
    """The options, the kept fractions of another run by their digest: it may move, or go on."""
    of_mask = {} if mask is None else {"keep_fraction_from": f"sha256:{mask.digest}"}
    return {**config.to_shared_json(), **of_mask}


def _settings(config: TrainConfig, world_size: int) -> Settings:
    if config.token_budget is None:
        micro, batch = config.micro_batch_size, config.global_batch_size
        accumulation = accumulation_steps(batch, micro, world_size)
    else:  # it differs from step to step; what counts here is that it is more than 1
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
