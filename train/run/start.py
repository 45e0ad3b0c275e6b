"""Start a planned run: its engine, new or restored, its reader, and the loss of each step."""

from dataclasses import replace
from typing import Any

from caskd.train.checkpoint import (
    load_checkpoint,
    load_weights,
    repeat_bit_for_bit,
    seed_everything,
)
from caskd.train.data import (
    BatchReader,
    SpanReader,
    fields_to_read,
    keeps_examples_apart,
    span_fields,
)
from caskd.train.delegation import DelegateReader, add_call_column, delegate_fields
from caskd.train.engine import Ranks, TrainEngine
from caskd.train.model import (
    LossOptions,
    StudentWithLoss,
    add_adapters,
    load_student,
    recompute_activations,
    student_groups,
)
from caskd.train.objectives import Objective
from caskd.train.run.plan import RunPlan
from caskd.train.run.schedule import objective_at, widest_read


def start_engine(plan: RunPlan, ranks: Ranks) -> TrainEngine:
    """Put the student under DeepSpeed, new or restored from the plan's checkpoint."""
    config = plan.config
    if config.deterministic:
        repeat_bit_for_bit()
    # Each rank has its own seed, also a rank that joins when a run is resumed.
    seed_everything(config.seed + ranks.rank + (plan.first_step << 20))
    model = load_student(config.student, plan.vocab_size)
    if plan.keeper is not None:
        add_call_column(model, plan.keeper.column, config.student)
    if plan.lora is not None:
        add_adapters(model, plan.lora, config.student)
    if plan.checkpoint is not None:
        load_weights(plan.checkpoint, model)
    elif plan.initial is not None:
        load_weights(plan.initial.checkpoint, model)
    if config.gradient_checkpointing:
        recompute_activations(model)
    options = loss_options(plan, plan.first_step)
    longest = plan.longest_possible
    groups = student_groups(
        config.student,
        model,
        longest,
        gathers=config.zero_stage == 3 and ranks.world_size > 1,
        quiet=ranks.rank > 0,
    )
    packs = config.token_budget is not None and keeps_examples_apart(model, longest)
    engine = TrainEngine(
        StudentWithLoss(model, options, packs=packs, groups=groups),
        plan.settings,
        ranks,
        optimizer_name=config.optimizer,
        weight_decay=config.weight_decay,
    )
    if plan.checkpoint is not None:
        load_checkpoint(plan.checkpoint, engine)
    return engine


def batch_reader(plan: RunPlan, ranks: Ranks, *, packed: bool = False) -> BatchReader | SpanReader:
    """The reader of this rank's batches."""
    config, widest = plan.config, widest_read(plan.objective, plan.config.final_w)
    common: dict[str, Any] = {
        "store": plan.store,
        "order": plan.order,
        "pad_id": pad_id(plan),
        "global_batch_size": config.global_batch_size,
        "split": replace(plan.split, packed=packed),
        "rank": ranks.rank,
        "pin_memory": ranks.device.type == "cuda",
        "mask": plan.mask,
    }
    if plan.tokens is not None:
        return SpanReader(tokens=plan.tokens, row_fields=span_fields(widest), **common)
    kind, names = plan.store.spec.kind, fields_to_read(widest, plan.store.spec.kind)
    delegate = None
    if plan.keeper is not None:
        delegate = DelegateReader(plan.keeper.rule, config.seed, plan.keeper.marks)
        names = tuple(dict.fromkeys((*names, *delegate_fields(plan.keeper.rule, kind))))
    if plan.row_weights is not None:
        names = tuple(dict.fromkeys((*names, *plan.row_weights.fields)))
    return BatchReader(row_fields=names, delegate=delegate, row_weights=plan.row_weights, **common)


def pad_id(plan: RunPlan) -> int:
    """Id of the padding behind short examples."""
    return plan.tokenizer.pad_token_id or 0  # masked; any id with an embedding works


def objective_of(plan: RunPlan, step: int) -> Objective:
    """Mask and label weight of one step."""
    config = plan.config
    return objective_at(
        step,
        objective=plan.objective,
        steps=config.steps,
        mask_from_step=config.mask_from_step,
        final_w=config.final_w,
    )


def loss_options(plan: RunPlan, step: int) -> LossOptions:
    """Options of the loss in one step."""
    delegation = None if plan.keeper is None else plan.keeper.now()
    confidence = plan.config.confidence_term
    return LossOptions(
        objective_of(plan, step), plan.tail, delegation, confidence, plan.row_weights
    )
