"""The loss under DistributedDataParallel, without the trainer; called by test_loss_ranks.py.

    torchrun --nproc-per-node 2 loss_ranks_driver.py OUT

Rank 0 writes OUT: the gradient of one step for each normaliser and cut of the batch.

Dimension letters: E examples, N rows, H hidden width, V vocabulary.
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).parents[1] / "numerics"))
from loss_cases import Case, make_case

from caskd.train.loss import cascade_aware_loss

ROWS_OF_EXAMPLES = (5, 1, 9, 0, 7, 2, 12, 0, 3, 6, 0, 0)
CUTS = {"even": 2, "by one": 1, "one rank has no rows": 4}
"""Micro-batch sizes in examples."""
OBJECTIVES = {"rows": "cat-dist", "examples": "cat-dist", "kept": "cat-dist-l"}
"""Normalisers, and an objective that each may go with."""


class Student(nn.Module):
    """A body of one layer, and a head."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(8)
        self.body = nn.Linear(7, 7)
        with torch.no_grad():
            for parameter in self.body.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 3)
        self.head = nn.Parameter(case.weight.clone())

    def forward(self, case: Case, rows: Tensor, objective: str, impl: str) -> Tensor:
        """Sum over the rows."""
        return cascade_aware_loss(
            self.body(case.hidden[rows]).tanh(),
            self.head,
            case.labels[rows],
            case.teacher.take(rows),
            objective=objective,
            impl=impl,
        ).loss


def make_batch() -> Case:
    """The rows of all examples, in order."""
    return make_case(num_rows=sum(ROWS_OF_EXAMPLES), vocab_size=53, dtype=torch.float32)


def denominator(case: Case, normaliser: str) -> int:
    """Of the whole step, known before its first forward."""
    counts = {
        "rows": len(case.labels),
        "examples": len(ROWS_OF_EXAMPLES),
        "kept": int((case.teacher.argmax == case.labels).sum()),
    }
    return counts[normaliser]


def micro_batches(cut: str, rank: int, world_size: int) -> Iterator[Tensor]:
    """Row indices of each micro-batch of a rank; under the last cut rank 1 has none at all."""
    rows = list(torch.arange(sum(ROWS_OF_EXAMPLES)).split(list(ROWS_OF_EXAMPLES)))
    if cut == "one rank has no rows":
        rows = [part for part in rows if len(part)] + [part for part in rows if not len(part)]
        share = rows[:8] if rank == 0 else rows[8:]
    else:
        share = rows[rank::world_size]
    for start in range(0, len(share), CUTS[cut]):
        yield torch.cat(share[start : start + CUTS[cut]])


def main() -> None:
    torch.distributed.init_process_group("gloo")
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    case, results = make_batch(), {}
    for normaliser, objective in OBJECTIVES.items():
        for cut in CUTS:
            model = DistributedDataParallel(Student(case))
            parts = list(micro_batches(cut, rank, world_size))
            scale = world_size / denominator(case, normaliser)
            for i, rows in enumerate(parts):
                last = i == len(parts) - 1
                with contextlib.nullcontext() if last else model.no_sync():
                    (model(case, rows, objective, "auto") * scale).backward()
            gradient = {name: p.grad for name, p in model.module.named_parameters()}
            results[normaliser, cut] = gradient, [len(rows) for rows in parts]
    everybodys: list[object] = [None] * world_size
    torch.distributed.all_gather_object(
        everybodys, {key: rows for key, (_, rows) in results.items()}
    )
    if rank == 0:
        gradients = {key: gradient for key, (gradient, _) in results.items()}
        torch.save({"gradients": gradients, "rows": everybodys}, sys.argv[1])
    torch.distributed.barrier()
    os._exit(0)  # the models hold the group, whose threads may wait for ever when both are freed


if __name__ == "__main__":
    main()
