"""Measuring the student on another store while it is trained.

eval.jsonl has a line per measurement: the step, the figures over all rows, and those of each task.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from caskd.store import StoreSpec, TeacherStore
from caskd.store.errors import IdentityError
from caskd.store.io import Progress, replace_file
from caskd.train.data import collate, fields_to_read, longest_first
from caskd.train.engine import TrainEngine
from caskd.train.loss import MEASURES, best_step, figures_of, tally_measures
from caskd.train.metrics import lines_up_to
from caskd.train.objectives import OBJECTIVES

EVAL_FILE = "eval.jsonl"


def open_eval_store(url: str, trained: StoreSpec) -> TeacherStore:
    """The store to measure on.

    Raises:
        IdentityError: its token ids mean something else than those of the store to learn from.
    """
    store = TeacherStore.open(url)
    if store.spec.vocab_digest != trained.vocab_digest:
        raise IdentityError(
            f"--eval-store {url}: its vocabulary ({store.spec.vocab_digest[:12]}) is not that of "
            f"--store ({trained.vocab_digest[:12]}). Precompute one with the same tokenizer."
        )
    return store


def measure(
    engine: TrainEngine, store: TeacherStore, bar: Progress, *, pad_id: int, micro_batch_size: int
) -> dict[str, Any]:
    """The student's figures on all rows of a store; every rank calls it and gets the same ones."""
    tasks, ranks = store.spec.tasks, engine.ranks
    row_fields = fields_to_read(OBJECTIVES["dist"], store.spec.kind)
    sums = tally_measures(torch.zeros(0, len(MEASURES)), torch.zeros(0).long(), len(tasks))
    batches = list(_batches(store, micro_batch_size, ranks.world_size))
    for done, batch in enumerate(batches):
        # All ranks run the student equally often: its weights may have to be gathered.
        mine = batch[ranks.rank :: ranks.world_size]
        examples = mine if len(mine) else batch[:1]
        rows = store.read(examples, row_fields)
        measured = engine.measure(collate(rows, pad_id)).cpu()
        if len(mine):
            counts = np.diff(rows.row_offsets)
            task = np.repeat(store.index.task[examples].astype(np.int64), counts)
            sums += tally_measures(measured, torch.from_numpy(task), len(tasks))
        bar.advance(0, f"measured {done + 1}/{len(batches)} batches")
    whole = engine.sum_over_ranks(sums.to(ranks.device)).numpy()
    named = {tasks[i]: asdict(figures_of(whole[i])) for i in range(len(tasks)) if whole[i, 0]}
    return {**asdict(figures_of(whole)), "tasks": named}


def _batches(store: TeacherStore, micro_batch_size: int, world_size: int) -> Iterator[Any]:
    """Examples with rows, longest first, for all ranks together."""
    examples = np.flatnonzero(store.row_counts()).astype(np.int64)
    by_length = longest_first(examples, store.token_counts())
    for start in range(0, len(by_length), micro_batch_size * world_size):
        yield by_length[start : start + micro_batch_size * world_size]


class EvalFile:
    """eval.jsonl of a run; lines after `done_steps` are dropped, as a resumed run takes them again.

    Every rank reads it; rank 0 writes.
    """

    def __init__(self, path: Path, done_steps: int, *, write: bool) -> None:
        self._path, self._write = path, write
        self._lines: list[dict[str, Any]] = [json.loads(x) for x in lines_up_to(path, done_steps)]

    def has(self, step: int) -> bool:
        """Whether that step has been measured."""
        return any(line["step"] == step for line in self._lines)

    def add(self, step: int, figures: dict[str, Any]) -> None:
        """Append the figures after `step` steps."""
        self._lines.append({"step": step, **figures})
        if self._write:
            replace_file(self._path, "".join(f"{json.dumps(x)}\n" for x in self._lines).encode())

    def best(self, metric: str) -> int | None:
        """The step with the best value of `metric` so far."""
        return best_step(self._lines, metric)


def best_step_of(run: Path, metric: str) -> int | None:
    """The step that `metric` chooses in a run's eval.jsonl."""
    return EvalFile(run / EVAL_FILE, 2**62, write=False).best(metric)
