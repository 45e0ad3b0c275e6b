"""Run a few steps of several cases with one launch of the ranks; called by test_ranks.py.

    steps_driver.py ROOT OUT CASE...

A case is ZERO_STAGE:DTYPE:MICRO_BATCH_SIZE:OBJECTIVE, or has tTOKEN_BUDGET in place of the size.
Rank 0 writes OUT: for each case the gradient of the first step, the losses and gradient norms of
all, the weights after them, and what a poisoned rank did.
"""

import sys
from pathlib import Path

import torch
from deepspeed.utils import safe_get_full_grad

from caskd.train.engine import Ranks, TrainEngine, init_distributed
from caskd.train.run.loop import batch_reader, start_engine, train_step
from caskd.train.run.plan import plan_run

sys.path.insert(0, str(Path(__file__).parents[1]))
from helpers.training import config_for

STEPS = 3
TIMEOUT_MINUTES = 7.0


def spy_on_gradient(engine: TrainEngine, seen: dict[str, torch.Tensor]) -> None:
    """Copy the whole gradient as it is when the first step is about to be applied."""
    inner = engine._engine
    step = inner.step

    def spying_step() -> None:
        if inner.is_gradient_accumulation_boundary() and not seen:
            for name, parameter in engine.module.named_parameters():
                seen[name] = safe_get_full_grad(parameter).clone().cpu().float()
        step()

    inner.step = spying_step


def run_case(root: Path, case: str, ranks: Ranks) -> dict[str, object]:
    stage, dtype, micro, objective = case.split(":")
    by_tokens = micro.startswith("t")
    size = {"token_budget" if by_tokens else "micro_batch_size": int(micro.removeprefix("t"))}
    config = config_for(
        root,
        zero_stage=int(stage),
        dtype=dtype,
        **size,
        global_batch_size=16,
        steps=STEPS,
        objective=objective,
        weight_decay=0.1,
        clip_grad_norm=0.02,
    )
    plan = plan_run(config)
    engine = start_engine(plan, ranks)
    gradient: dict[str, torch.Tensor] = {}
    spy_on_gradient(engine, gradient)
    metrics = [
        train_step(plan, engine, batch, False)[0]
        for batch in batch_reader(plan, ranks, packed=bool(engine.module.packs)).steps(0, STEPS)
    ]
    weights = dict(engine.state.weights())
    low = {n: p.detach() for n, p in engine.module.model.named_parameters()}
    if config.zero_stage < 3:
        for name, value in low.items():
            assert torch.equal(weights[name].to(value.dtype), value.cpu()), name
    poisoned = poison(plan, engine, ranks)
    after = dict(engine.state.weights())
    return {
        "gradient": gradient,
        "losses": [m["loss"] for m in metrics],
        "keep": [m["keep_fraction"] for m in metrics],
        "norms": [m["grad_norm"] for m in metrics],
        "weights": weights,
        "poisoned_applied": poisoned,
        "poisoned_changed": [n for n in weights if not torch.equal(weights[n], after[n])],
    }


def poison(plan: object, engine: TrainEngine, ranks: Ranks) -> bool:
    """A step in which the last rank's first loss is not finite; whether it was applied."""
    batch = next(iter(batch_reader(plan, ranks).steps(STEPS, STEPS + 1)))  # type: ignore[arg-type]
    for i, part in enumerate(batch.micro_batches):
        bad = i == 0 and ranks.rank == ranks.world_size - 1
        engine.micro_step(part, float("nan") if bad else 1.0, last=part is batch.micro_batches[-1])
    return engine.was_step_applied()


def seconds_groups_wait() -> set[float]:
    """What every group that there is by now, DeepSpeed's own included, has as its timeout."""
    groups = torch.distributed.distributed_c10d._world.pg_map
    cpu = torch.device("cpu")
    return {group._get_backend(cpu).options._timeout.total_seconds() for group in groups}


def main() -> None:
    root, out, cases = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    with init_distributed(TIMEOUT_MINUTES) as ranks:
        results: dict[str, object] = {case: run_case(root, case, ranks) for case in cases}
        results["seconds_groups_wait"] = seconds_groups_wait()
        if ranks.rank == 0:
            torch.save(results, out)


if __name__ == "__main__":
    main()
