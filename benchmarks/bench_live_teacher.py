"""The same training from a store and with the teacher in the loop, step by step.

    python benchmarks/bench_live_teacher.py --student S --teacher T --store DIR --eval-store DIR

Initial weights, examples, order and learning rates are equal. The live arm runs the teacher on
every batch and keeps the same top-k of its logits, unrounded, so the only difference is the
rounding of the store's encoding. Writes benchmarks/results/live_teacher.csv: both losses at some
steps, the largest difference over all steps, and both students' final figures on the evaluation
store.

Dimension letters: N rows, V vocabulary, k cells kept.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from store_rows import setting, write_table

from caskd.models import open_model
from caskd.store.io import progress
from caskd.train import TrainConfig
from caskd.train.checkpoint import seed_everything
from caskd.train.data import MicroBatch
from caskd.train.engine import TrainEngine, init_distributed
from caskd.train.loss import TeacherRows
from caskd.train.model import LossOptions, StudentWithLoss, load_student
from caskd.train.run.loop import batch_reader, train_step
from caskd.train.run.plan import RunPlan, plan_run
from caskd.train.run.validation import evaluate

ARMS = ("store", "live teacher")


class LiveStudent(StudentWithLoss):
    """A student whose teacher runs on every batch."""

    beside: tuple[Any, int, int]
    """The teacher, k, and the size of the vocabulary."""

    def forward(self, batch: MicroBatch) -> Any:
        if self.training:  # evaluation uses the rows of the evaluation store
            batch = replace(batch, teacher=self.taught(batch))
        return super().forward(batch)

    @torch.no_grad()
    def taught(self, batch: MicroBatch) -> TeacherRows:
        model, k, vocab_size = self.beside
        body = model.base_model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
        hidden = body.last_hidden_state.flatten(0, 1)[batch.gather_index]
        logits = model.get_output_embeddings()(hidden)[:, :vocab_size].float()  # [N, V]
        values, ids = logits.topk(k, dim=1)
        logsumexp = logits.logsumexp(1)
        rest = (logits - logsumexp[:, None]).exp_().scatter_(1, ids, 0.0)
        return TeacherRows(
            argmax=logits.argmax(1),
            topk_ids=ids,
            topk_logits=values,
            num_kept=torch.full_like(batch.labels, k),
            logsumexp=logsumexp,
            tail_mass=rest.sum(1),
        )


def make_engine(plan: RunPlan, ranks: Any, arm: str, teacher: str) -> TrainEngine:
    seed_everything(plan.config.seed)
    student = load_student(plan.config.student, plan.vocab_size)
    options = LossOptions(plan.objective, plan.tail)
    module = StudentWithLoss(student, options)
    if arm == "live teacher":
        dtype = plan.store.spec.identity["capture"]["load_dtype"]
        model = open_model(teacher, "--teacher", dtype=dtype).eval().to(ranks.device)
        module = LiveStudent(student, options)
        module.beside = (model, plan.store.spec.top_k, plan.store.spec.vocab_size)
    return TrainEngine(
        module,
        plan.settings,
        ranks,
        optimizer_name=plan.config.optimizer,
        weight_decay=plan.config.weight_decay,
    )


def run(arguments: argparse.Namespace, arm: str) -> tuple[list[float], dict[str, Any], float]:
    """The loss of each step, the figures at the end, and seconds of all steps."""
    with tempfile.TemporaryDirectory() as directory, init_distributed() as ranks:
        plan = plan_run(
            TrainConfig(
                store=(arguments.store,), student=arguments.student, out=Path(directory) / "run",
                steps=arguments.steps, global_batch_size=arguments.batch,
                micro_batch_size=arguments.batch, lr=arguments.lr, objective=arguments.objective,
                eval_store=arguments.eval_store,
            )
        )  # fmt: skip
        engine = make_engine(plan, ranks, arm, arguments.teacher)
        losses, began = [], time.perf_counter()
        with progress(arm, arguments.steps, "steps") as bar:
            for batch in batch_reader(plan, ranks).steps(0, arguments.steps):
                metrics, _ = train_step(plan, engine, batch, terminated=False)
                losses.append(metrics["loss"])
                bar.advance()
            seconds = time.perf_counter() - began
            assert plan.eval_store is not None
            figures = evaluate(engine, plan.eval_store, bar, pad_id=0, micro_batch_size=8)
        engine.close()
    return losses, figures, seconds


def rows(arguments: argparse.Namespace) -> Iterator[tuple[str, str, float]]:
    results = {arm: run(arguments, arm) for arm in ARMS}
    (ours, _, _), (live, _, _) = results.values()
    for step in sorted({1, 10, 50, 100, arguments.steps // 2, arguments.steps}):
        if step <= arguments.steps:
            for arm in ARMS:
                yield arm, f"loss at step {step}", results[arm][0][step - 1]
    yield (
        "store against live teacher", "largest relative difference of a step's loss",
        max(abs(a - b) / abs(b) for a, b in zip(ours, live, strict=True)),
    )  # fmt: skip
    for arm, (losses, figures, seconds) in results.items():
        last = losses[-20:]
        yield arm, "mean loss of the last 20 steps", sum(last) / len(last)
        for name in ("nll", "accuracy", "kl", "keep_fraction", "ece"):
            yield arm, f"held out: {name}", figures[name]
        yield arm, "seconds of all steps", seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("student", "teacher", "store", "eval-store"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=8, help="examples per step")
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--objective", default="cat-dist")
    parser.add_argument("--notes", default="", help="text of the notes column, e.g. shared machine")
    arguments = parser.parse_args()
    table = []
    for variant, figure, value in rows(arguments):
        table.append({"variant": variant, "figure": figure, "value": f"{value:.7g}"})
        print(f"{variant:28} {figure:46} {value:12.7g}", flush=True)
    columns = {
        "objective": arguments.objective,
        "steps": arguments.steps,
        "batch": arguments.batch,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        **setting(arguments.notes),
    }
    write_table("live_teacher", table, columns)


if __name__ == "__main__":
    main()
