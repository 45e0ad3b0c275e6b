"""An optimizer step of a student with another tokenizer, beside plain cross-entropy of its tokens.

    python benchmarks/bench_span_step.py --store STORE --student DIR [--student DIR ...]

The steps share one student in one engine and take the same batches; each round takes every kind of
step once, in turn. Seconds are CPU seconds of the process, so that other programs on the machine
do not count. `read` is what reading, tokenising and aligning a batch takes, apart from the step; in
`caskd train` another thread does it ahead. Writes benchmarks/results/span_step.csv.

Dimension letters: B examples, T tokens, N rows, V vocabulary.
"""

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from store_rows import setting, write_table
from torch.nn import functional as F

from caskd.train import TrainConfig
from caskd.train.data import MicroBatch
from caskd.train.engine import TrainEngine, init_distributed
from caskd.train.model import SUM_NAMES, LossOptions, StudentWithLoss, load_student
from caskd.train.objectives import OBJECTIVES
from caskd.train.run.loop import batch_reader
from caskd.train.run.plan import plan_run

CROSS_ENTROPY = "cross-entropy on whole logits"
KINDS = (CROSS_ENTROPY, "xent", "alm", "cat-alm")


class AnyStep(StudentWithLoss):
    """The student with the losses of KINDS, chosen by `kind`."""

    kind = CROSS_ENTROPY

    def forward(self, batch: MicroBatch) -> Any:
        if self.kind != CROSS_ENTROPY:
            self.options = LossOptions(OBJECTIVES[self.kind], "bucket")
            return super().forward(batch)
        hidden = self.hidden(batch.input_ids, batch.attention_mask)
        hidden = hidden.flatten(0, 1)[batch.gather_index]
        logits = self.model.get_output_embeddings()(hidden).float()  # [N, V]
        loss = F.cross_entropy(logits, batch.labels, reduction="sum")
        return loss, torch.zeros(len(SUM_NAMES), dtype=torch.float64)


def measure(store: str, student: str, batch: int, rounds: int) -> list[dict[str, Any]]:
    """Median CPU seconds of each kind of step."""
    with tempfile.TemporaryDirectory() as folder, init_distributed(10) as ranks:
        plan = plan_run(
            TrainConfig(
                store=(store,), student=student, out=Path(folder) / "run", steps=rounds + 1,
                global_batch_size=batch, micro_batch_size=batch, objective="alm", dtype="float32",
            )
        )  # fmt: skip
        module = AnyStep(
            load_student(student, plan.vocab_size), LossOptions(plan.objective, "bucket")
        )
        counts = [p.numel() for p in module.parameters()]
        engine = TrainEngine(module, plan.settings, ranks, weight_decay=0.0)
        engine.set_lr(1e-4)
        seconds: dict[str, list[float]] = {name: [] for name in ("read", *KINDS)}
        steps, rows = batch_reader(plan, ranks).steps(0, rounds + 1), 0
        for _ in range(rounds + 1):
            started = time.process_time()
            one = next(steps)
            seconds["read"].append(time.process_time() - started)
            rows += len(one.micro_batches[0].labels)
            for kind in KINDS:
                engine.module.kind = kind
                started = time.process_time()
                engine.micro_step(one.micro_batches[0], 1 / one.num_rows, last=True)
                seconds[kind].append(time.process_time() - started)
        engine.close()
    plain = median(seconds[CROSS_ENTROPY][1:])
    return [
        {
            "student": Path(student).name,
            "parameters": sum(counts),
            "vocabulary": module.model.config.vocab_size,
            "rows_per_step": rows // (rounds + 1),
            "step": kind,
            "cpu_seconds": round(median(values[1:]), 4),
            "over_cross_entropy": round(median(values[1:]) / plain, 3),
            "rounds": rounds,
        }
        for kind, values in seconds.items()
    ]


def main() -> None:
    """Measure every student."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--store", required=True)
    parser.add_argument("--student", action="append", required=True)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--notes", default="")
    arguments = parser.parse_args()
    table: list[dict[str, Any]] = []
    for student in arguments.student:
        table += measure(arguments.store, student, arguments.batch, arguments.rounds)
        print(*table[-len(KINDS) - 1 :], sep="\n", flush=True)
    write_table("span_step", table, setting(arguments.notes))


if __name__ == "__main__":
    main()
