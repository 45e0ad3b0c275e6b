"""Start a planned run: its engine, new or restored, its reader, and the loss of each step."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from caskd.models import SplitModel, masked_groups
from caskd.store.io import tell
from caskd.train.checkpoint import (
    load_checkpoint,
    load_weights,
    read_state,
    repeat_bit_for_bit,
    seed_everything,
)
from caskd.train.data import (
    BatchReader,
    MicroBatch,
    SpanReader,
    StudentMask,
    fields_to_read,
    keeps_examples_apart,
    label_nll,
    learnable_gain,
    learnable_rows,
    mask_of,
    reachable_rows,
    read_mask,
    row_scores,
    span_fields,
    write_mask,
)
from caskd.train.delegation import DelegateReader, add_call_column, delegate_fields
from caskd.train.engine import Ranks, TrainEngine
from caskd.train.mask_options import MASK_SHARE, P_TH
from caskd.train.model import (
    LossOptions,
    StudentWithLoss,
    add_adapters,
    load_student,
    recompute_activations,
    student_groups,
)
from caskd.train.objectives import OBJECTIVES, Objective
from caskd.train.run.exporter import consolidated_model
from caskd.train.run.initial import REFERENCE
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
    if plan.delegated is not None:
        add_call_column(model, plan.delegated.column, config.student)
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


def mask_of_student(plan: RunPlan, engine: TrainEngine) -> StudentMask | None:
    """The mask of --mask: computed before the first step, else read from --out; None without it.

    Raises:
        CorruptError: the run has taken steps, and the mask in --out is missing or another.
    """
    config, ranks = plan.config, engine.ranks
    if config.mask is None:
        return None
    p_th = P_TH if config.p_th is None else config.p_th
    share = MASK_SHARE if config.mask_share is None else config.mask_share
    made_from: dict[str, Any] = {"mask": config.mask, "stores": plan.store.digest}
    if plan.reference is None:
        made_from |= {"p_th": p_th}
    else:
        made_from |= {"share": share, "reference": plan.reference.recorded}
    if plan.checkpoint is not None:
        return read_mask(config.out, plan.store, made_from)
    measured = partial(
        row_scores,
        plan.store,
        sum_over_ranks=engine.sum_over_ranks,
        batch_size=config.micro_batch_size,
        pad_id=pad_id(plan),
        rank=ranks.rank,
        world_size=ranks.world_size,
        device=ranks.device,
    )
    if plan.reference is None:
        nll = measured(lambda batch: label_nll(engine.evaluate(batch)), fields=("num_kept",))
        kept, rule = reachable_rows(nll, p_th), f"p_S(label) >= {p_th:g}"
    else:
        names = fields_to_read(OBJECTIVES["dist"], plan.store.spec.kind)
        gain = measured(_learnable_gain(plan, engine), fields=names)
        kept, rule = learnable_rows(gain, share), "largest KL_S - KL_R"
    mask = mask_of(plan.store, kept)
    if ranks.rank == 0:
        write_mask(config.out, mask, made_from)
        tell(f"mask         keeps {mask.fraction:.1%} of the rows: {rule}")
    return mask


def _learnable_gain(plan: RunPlan, engine: TrainEngine) -> Callable[[MicroBatch], Tensor]:
    """`learnable_gain` of a batch; the reference is a whole model on each rank."""
    assert plan.reference is not None, "the mask has a reference"
    checkpoint, ranks = plan.reference.checkpoint, engine.ranks
    model, _ = consolidated_model(checkpoint, read_state(checkpoint))
    flag = f"{REFERENCE} {plan.config.reference}"
    groups = masked_groups(SplitModel(model, flag), flag, (lambda _: None) if ranks.rank else None)
    reference = StudentWithLoss(model, LossOptions(plan.objective, plan.tail), groups=groups)
    reference.to(ranks.device, next(engine.module.parameters()).dtype).eval()

    @torch.no_grad()
    def gain(batch: MicroBatch) -> Tensor:
        theirs = reference(batch.to(ranks.device))
        return learnable_gain(engine.evaluate(batch), theirs)

    return gain


def batch_reader(
    plan: RunPlan, ranks: Ranks, *, packed: bool = False, mask: StudentMask | None = None
) -> BatchReader | SpanReader:
    """The reader of this rank's batches.

    Args:
        plan: of the run.
        ranks: this process among them.
        packed: whether examples share rows.
        mask: of --mask; None without it.
    """
    config, widest = plan.config, widest_read(plan.objective, plan.config.final_w)
    common: dict[str, Any] = {
        "store": plan.store,
        "order": plan.order,
        "pad_id": pad_id(plan),
        "global_batch_size": config.global_batch_size,
        "split": replace(plan.split, packed=packed),
        "rank": ranks.rank,
        "pin_memory": ranks.device.type == "cuda",
        "mask": plan.mask if mask is None else mask,
    }
    if plan.tokens is not None:
        return SpanReader(tokens=plan.tokens, row_fields=span_fields(widest), **common)
    kind, names = plan.store.spec.kind, fields_to_read(widest, plan.store.spec.kind)
    delegate = None
    if plan.delegated is not None:
        delegate = DelegateReader(plan.delegated.rule, config.seed, plan.delegated.marks)
        names = tuple(dict.fromkeys((*names, *delegate_fields(plan.delegated.rule, kind))))
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
    delegation = None if plan.delegated is None else plan.delegated.now()
    confidence = plan.config.confidence_term
    return LossOptions(
        objective_of(plan, step), plan.tail, delegation, confidence, plan.row_weights
    )
