"""Evaluate the student on another store during training.

eval.jsonl has one line per evaluation: the step, the metrics over all rows, and those of each task.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from caskd.models import longest_first
from caskd.store import StoreSpec, TeacherStore
from caskd.store.errors import IdentityError, UsageError
from caskd.store.io import Progress, files, parse_json
from caskd.train.data import (
    LeftOut,
    MicroBatch,
    StudentTokens,
    collate,
    collate_spans,
    fields_to_read,
    span_examples,
    span_fields,
)
from caskd.train.engine import TrainEngine
from caskd.train.loss import ROW_STATS, best_step, eval_metrics, sum_row_stats
from caskd.train.metrics import lines_up_to
from caskd.train.objectives import OBJECTIVES

EVAL_FILE = "eval.jsonl"


def open_eval_store(url: str, trained: StoreSpec, *, one_vocabulary: bool = True) -> TeacherStore:
    """Open the store to evaluate on.

    Args:
        url: of the store.
        trained: spec of a training store.
        one_vocabulary: refuse a vocabulary other than that of the training stores.

    Raises:
        IdentityError: its vocabulary differs from that of the training stores.
        UsageError: its capture lacks the teacher's argmax or tail mass.
    """
    store = TeacherStore.open(url)
    if not one_vocabulary:
        return store
    if store.spec.vocab_digest != trained.vocab_digest:
        raise IdentityError(
            f"--eval-store {url}: its vocabulary is {store.spec.vocab_digest[:12]}; expected that "
            f"of --store, {trained.vocab_digest[:12]}; precompute one with the same tokenizer"
        )
    known_as = store.spec.capture_fields
    for name in ("argmax", "tail"):
        if known_as[name] == "unknown":
            raise UsageError(
                f"--eval-store {url}: capture.{name} is unknown; expected a known one, because the "
                "agreement with the teacher is read from it; pass a store that caskd captured"
            )
    return store


def evaluate(
    engine: TrainEngine,
    store: TeacherStore,
    bar: Progress,
    *,
    pad_id: int,
    micro_batch_size: int,
    tokens: StudentTokens | None = None,
) -> dict[str, Any]:
    """The student's metrics on all rows of a store. Every rank must call it, and gets the same.

    Args:
        engine: of the student.
        store: to evaluate on.
        bar: shows the progress.
        pad_id: of the student's tokenizer.
        micro_batch_size: examples of a forward.
        tokens: of a student with another tokenizer. Its metrics are over its own tokens, without
            KL, and `nats_per_byte` is their negative log-likelihood by bytes of the replies.
    """
    tasks, ranks = store.spec.tasks, engine.ranks
    sums = sum_row_stats(torch.zeros(0, len(ROW_STATS)), torch.zeros(0).long(), len(tasks))
    num_bytes = 0
    batches = list(_batches(store, micro_batch_size, ranks.world_size))
    for done, batch in enumerate(batches):
        # All ranks run the student equally often, because stage 3 gathers its weights.
        mine = batch[ranks.rank :: ranks.world_size]
        examples = mine if len(mine) else batch[:1]
        inputs, counts, size = _read(store, examples, tokens, pad_id)
        stats = engine.evaluate(inputs).cpu()
        if len(mine):
            num_bytes += size
            task = np.repeat(store.index.task[examples].astype(np.int64), counts)
            sums += sum_row_stats(stats, torch.from_numpy(task), len(tasks))
        bar.advance(0, f"evaluated {done + 1}/{len(batches)} batches")
    whole = engine.sum_over_ranks(sums.to(ranks.device)).numpy()
    average = partial(eval_metrics, knows_topk=store.spec.row_kind.has_tail)
    named = {tasks[i]: asdict(average(whole[i])) for i in range(len(tasks)) if whole[i, 0]}
    metrics = {**asdict(average(whole)), "tasks": named}
    if tokens is not None:
        own = torch.tensor([num_bytes], dtype=torch.float64, device=ranks.device)
        total = float(engine.sum_over_ranks(own)[0])
        nll = metrics["nll"]
        metrics["nats_per_byte"] = nll * metrics["num_rows"] / total if nll and total else None
    return metrics


def _read(
    store: TeacherStore, examples: Any, tokens: StudentTokens | None, pad_id: int
) -> tuple[MicroBatch, Any, int]:
    """A micro-batch, the rows of each example, and bytes of all replies (0 without `tokens`)."""
    if tokens is None:
        rows = store.read(examples, fields_to_read(OBJECTIVES["dist"], store.spec.kind))
        return collate(rows, pad_id), np.diff(rows.row_offsets), 0
    rows = store.read(examples, span_fields(OBJECTIVES["xent"]))
    found = span_examples(rows, tokens)
    known = [None if isinstance(example, LeftOut) else example.aligned for example in found]
    counts = [0 if aligned is None else len(aligned.student_span) for aligned in known]
    num_bytes = sum(aligned.num_bytes for aligned in known if aligned is not None)
    return collate_spans(found, pad_id), counts, num_bytes


def _batches(store: TeacherStore, micro_batch_size: int, world_size: int) -> Iterator[Any]:
    """Batches of examples with rows, longest first, for all ranks together."""
    examples = np.flatnonzero(store.row_counts()).astype(np.int64)
    by_length = examples[longest_first(store.token_counts()[examples].astype(np.int64))]
    for start in range(0, len(by_length), micro_batch_size * world_size):
        yield by_length[start : start + micro_batch_size * world_size]


class EvalFile:
    """eval.jsonl of a run. It drops lines after `done_steps`, because a resumed run repeats them.

    Every rank reads the file; rank 0 writes it.
    """

    def __init__(self, path: Path, done_steps: int, *, write: bool) -> None:
        self._path, self._write = path, write
        self._lines: list[dict[str, Any]] = [
            parse_json(x, constants=True) for x in lines_up_to(path, done_steps)
        ]

    def has(self, step: int) -> bool:
        """Whether the student was evaluated at that step."""
        return any(line["step"] == step for line in self._lines)

    def add(self, step: int, metrics: dict[str, Any]) -> None:
        """Append the metrics after `step` steps."""
        self._lines.append({"step": step, **metrics})
        if self._write:
            files.replace_file(
                self._path, "".join(f"{json.dumps(x)}\n" for x in self._lines).encode()
            )

    def best(self, metric: str) -> int | None:
        """The step with the best value of `metric` so far."""
        return best_step(self._lines, metric)


def best_step_of(run: Path, metric: str) -> int | None:
    """The step with the best value of `metric` in a run's eval.jsonl."""
    return EvalFile(run / EVAL_FILE, 2**62, write=False).best(metric)
