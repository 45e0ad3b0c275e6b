"""Plan a run: check every option and derive every number before any weight is loaded."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from caskd.models import default_device
from caskd.store import TeacherStore
from caskd.store.corpus import vocab_size
from caskd.store.format import check_imported
from caskd.store.io import counted
from caskd.train.checkpoint import RunState
from caskd.train.config import TrainConfig
from caskd.train.data import (
    MicroBatchSplit,
    MixedOrder,
    RandomMask,
    RowWeights,
    StoreMix,
    StudentTokens,
    check_budget,
    check_weighed_fields,
    many_epochs,
    read_fractions,
    shares,
)
from caskd.train.delegation import DelegationShare, delegation_share
from caskd.train.engine import Settings, engine_settings
from caskd.train.mask_options import masked_by_student
from caskd.train.model import (
    AlignmentStats,
    LoraOptions,
    TeacherText,
    check_any_spans,
    check_config,
    check_other_bytes,
    load_tokenizer,
    longest_of_all,
    lora_options,
    sample_alignment,
    span_lines,
    teacher_text,
)
from caskd.train.objectives import Objective, Tail, resolve_objective, resolve_tail
from caskd.train.run.initial import (
    InitialWeights,
    initial_weights,
    recorded_options,
    reference_weights,
)
from caskd.train.run.out_folder import check_unused, is_first_rank, resumed
from caskd.train.run.schedule import widest_read
from caskd.train.run.span_run import check_row_terms, tokens_of_run
from caskd.train.run.trackers import check_trackers
from caskd.train.run.validation import open_eval_store


@dataclass(frozen=True, kw_only=True, eq=False)
class RunPlan:
    """A checked run that can start.

    Attributes:
        config: the options, with every default resolved.
        world_size: number of ranks.
        store: the training stores.
        order: of the examples.
        objective: mask rule and label weight.
        mask: of a random-* objective; None where the loss computes the mask.
        tokenizer: the student's.
        text: what the student takes over from its teacher's tokenizer; None where it has another.
        tokens: the student's tokens of each store; None where it has the teacher's vocabulary.
        spans: how they align with the teacher's, over a sample; None likewise.
        settings: DeepSpeed's configuration.
        split: how a step is split into micro-batches.
        eval_store: to evaluate on.
        eval_tokens: the student's tokens of that store; None where it has the teacher's vocabulary.
        lora: adapters to train in place of the weights.
        checkpoint: to resume from; None with --resume if the run starts anew.
        done: position and identity of that checkpoint.
        initial: weights of another run to start with.
        reference: weights of the run of --reference.
        delegated: share of delegated rows; None without --delegate.
        row_weights: the caller's rule of row weights; None without one.
    """

    config: TrainConfig
    world_size: int
    store: StoreMix
    order: MixedOrder
    objective: Objective
    mask: RandomMask | None
    tokenizer: Any
    text: TeacherText | None
    tokens: tuple[StudentTokens, ...] | None
    spans: AlignmentStats | None
    settings: Settings
    split: MicroBatchSplit
    eval_store: TeacherStore | None
    eval_tokens: StudentTokens | None
    lora: LoraOptions | None
    checkpoint: Path | None
    done: RunState | None
    initial: InitialWeights | None
    reference: InitialWeights | None
    delegated: DelegationShare | None
    row_weights: RowWeights | None

    @property
    def first_step(self) -> int:
        """Number of steps that the run has finished already."""
        return self.done.step if self.done else 0

    @property
    def vocab_size(self) -> int:
        """Tokens that the student's embedding must have rows for."""
        if self.tokens is None:
            return self.store.spec.vocab_size
        return vocab_size(self.tokenizer)

    @property
    def longest(self) -> int:
        """The student's tokens of the longest training example; of a sample where it has another
        tokenizer than the teacher."""
        if self.spans is None:
            return int(self.store.token_counts().max())
        return max(1, self.spans.longest_example)

    @property
    def longest_possible(self) -> int:
        """No example that is trained or evaluated on has more of the student's tokens."""
        if self.tokens is not None:
            return max(self.longest, *(one.max_length for one in self.tokens))
        if self.eval_store is None:
            return self.longest
        return max(self.longest, int(self.eval_store.token_counts().max()))

    @property
    def tail(self) -> Tail:
        """How the loss treats the teacher's mass outside the top-k."""
        return resolve_tail(self.config.tail, self.store.spec.kind)

    @property
    def options(self) -> dict[str, Any]:
        """The options as the run's files record them."""
        found = self.mask, self.initial, self.reference, self.row_weights
        return recorded_options(self.config, *found)

    @property
    def store_records(self) -> list[dict[str, Any]]:
        """The stores as config.json records them."""
        return _store_records(self.store)

    def state_after(self, step: int, skipped_steps: int) -> RunState:
        """Position and identity of a checkpoint after `step` steps."""
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
            text=None if self.text is None else self.text.to_json(),
            delegation=None if self.delegated is None else self.delegated.to_json(),
        )

    def summary(self) -> Iterator[str]:
        """The derived numbers, one printed line each."""
        config, order = self.config, self.order
        yield from self._store_lines()
        yield (
            f"examples     {order.num_examples:,} of {sum(order.sizes):,} have response tokens, "
            f"in {counted(order.num_blocks, 'shard')}"
        )
        tail = "" if self.tokens is not None else f", tail {self.tail}"
        own = "random" if self.objective.needs_keep else self.objective.rule
        rule = config.mask or own
        yield (
            f"objective    {config.objective}: mask {rule}, label weight {self.objective.w:g}{tail}"
        )
        if self.mask is not None:
            kept = self.mask.fractions
            yield (
                f"mask         keeps {kept.mean():.1%} of the rows at random, {kept.min():.1%} to "
                f"{kept.max():.1%} per step (fractions {self.mask.digest[:12]})"
            )
        if (call := self.delegated) is not None:
            share = "" if call.share is None else f", {call.share:.1%} of the rows"
            marks = call.marks
            share += "" if marks is None else f", of {marks.share:.1%} marked"
            yield f"delegation   {call.rule}{share}, CALL is id {call.column:,}"
        if (term := config.confidence_term) is not None:
            yield f"confidence   {term.rule}, weight {term.weight:g}"
        if self.row_weights is not None:
            yield f"row weights  {self.row_weights.name}"
        yield f"batch        {config.global_batch_size} examples = {self._batch_split()}"
        epochs = config.steps * config.global_batch_size / order.num_examples
        in_epochs = f" = {epochs:.2f} epochs" if len(order.orders) == 1 else ""
        yield f"steps        {config.steps:,}{in_epochs}, from step {self.first_step:,}"
        yield (
            f"engine       ZeRO {config.zero_stage}, {config.dtype}, {config.optimizer}, "
            f"lr {config.lr:g} {config.schedule}"
        )
        runs = {"start        from the weights of": self.initial, "reference   ": self.reference}
        yield from (f"{name} {run.shown}" for name, run in runs.items() if run is not None)
        if self.lora is not None:
            yield f"adapters     rank {self.lora.rank}, alpha {self.lora.alpha:g}"
        if self.spans is not None and self.tokens is not None:
            same = self.tokens[0].shares_vocabulary
            yield from span_lines(self.spans, shares_vocabulary=same)
        for note in () if self.text is None else self.text.notes:
            yield f"text         {note}"
        if self.eval_store is not None:
            yield f"evaluation   {self.eval_store.spec.num_rows:,} response tokens"

    def warnings(self) -> Iterator[str]:
        """What is allowed and rarely meant, one line each."""
        yield from many_epochs(
            self.store,
            self.order,
            steps=self.config.steps,
            batch=self.config.global_batch_size,
            flags=("--steps", "--global-batch-size"),
        )

    def _store_lines(self) -> Iterator[str]:
        num_examples = self.config.steps * self.config.global_batch_size
        each = zip(self.store.stores, self.order.orders, shares(self.store.weights), strict=True)
        for store, order, share in each:
            spec = store.spec
            line = f"store        {spec.teacher}, {spec.num_rows:,} response tokens, {spec.kept}"
            epochs = num_examples * share / order.num_examples
            if len(self.store.stores) > 1:
                line += f", {share:.1%} of the examples = {epochs:.2f} epochs ({store.name})"
            yield line

    def _batch_split(self) -> str:
        config = self.config
        if config.token_budget is not None:
            return f"up to {config.token_budget:,} tokens x {self.world_size} ranks per micro-step"
        per_forward = config.micro_batch_size * self.world_size
        return (
            f"{config.micro_batch_size} x {self.world_size} ranks x "
            f"{config.global_batch_size // per_forward} accumulation"
        )


def plan_run(config: TrainConfig, row_weights: RowWeights | None = None) -> RunPlan:
    """Check the options against the stores, the student, the ranks and the content of --out.

    Raises:
        CaskdError: an option is wrong, in one line.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    dtype = config.dtype or ("bfloat16" if default_device().type == "cuda" else "float32")
    config = replace(config, dtype=dtype)
    objective = masked_by_student(
        resolve_objective(config.objective, config.w, config.match), config.mask
    )
    settings = engine_settings(config, world_size)
    check_trackers(config)
    if not config.resume and is_first_rank():  # the other ranks learn of a refusal
        check_unused(config.out)
    mask = None
    if config.keep_fraction_from is not None:
        mask = RandomMask(config.seed, read_fractions(config.keep_fraction_from, config.steps))
    store = StoreMix.open(config.store, one_vocabulary=False)
    config = replace(config, tail=resolve_tail(config.tail, store.spec.kind))
    store.check_known(widest_read(objective, config.final_w), config.tail, config.confidence)
    accept = None if config.accept_imported else "--accept-imported"
    store.check_imported(accept)
    check_weighed_fields(row_weights, store.stores)
    order = store.order(config.seed)
    checkpoint = done = None
    initial = initial_weights(config)
    reference = reference_weights(config, store)
    if config.resume:
        checkpoint, done = resumed(
            config.out,
            recorded_options(config, mask, initial, reference, row_weights),
            _store_records(store),
            store.digest,
        )
    tokenizer = load_tokenizer(config.student)
    tokens = tokens_of_run(config, store.stores, tokenizer, objective)
    eval_store = eval_tokens = spans = None
    if config.eval_store is not None:
        eval_store = open_eval_store(config.eval_store, store.spec, one_vocabulary=tokens is None)
        check_imported(eval_store.spec, f"--eval-store {config.eval_store}", accept)
        if tokens is not None:
            eval_tokens = tokens_of_run(config, (eval_store,), tokenizer, objective)
    check_row_terms(config, row_weights, one_vocabulary=tokens is None)
    if tokens is not None:
        spans = sample_alignment(store, tokens, order, objective)
        check_other_bytes(spans.num_other_bytes, spans.num_examples, config.allow_other_bytes)
        check_any_spans(spans)
    text = None
    if tokens is None:
        teacher = config.teacher_tokenizer
        text = teacher_text(store.stores, config.student, tokenizer, teacher_tokenizer=teacher)
    plan = RunPlan(
        config=config,
        world_size=world_size,
        store=store,
        order=order,
        objective=objective,
        mask=mask,
        tokenizer=tokenizer,
        text=text,
        tokens=tokens,
        spans=spans,
        settings=settings,
        split=MicroBatchSplit(
            world_size=world_size,
            micro_batch_size=config.micro_batch_size,
            token_budget=config.token_budget,
        ),
        eval_store=eval_store,
        eval_tokens=None if eval_tokens is None else eval_tokens[0],
        lora=lora_options(config.to_json()),
        checkpoint=checkpoint,
        done=done,
        initial=initial,
        reference=reference,
        delegated=delegation_share(  # adds the CALL token, after `text`
            config,
            store.stores,
            tokenizer,
            one_vocabulary=tokens is None,
            saved=None if done is None else done.delegation,
        ),
        row_weights=row_weights,
    )
    if config.token_budget is not None:
        longest = plan.longest if tokens is None else longest_of_all(store, tokens)
        check_budget(config.token_budget, config.global_batch_size, world_size, longest)
    check_config(config.student, plan.vocab_size, plan.longest_possible)
    return plan


def _store_records(store: StoreMix) -> list[dict[str, Any]]:
    return [
        {"teacher": one.spec.teacher, "seal": one.digest, "share": share}
        for one, share in zip(store.stores, shares(store.weights), strict=True)
    ]
