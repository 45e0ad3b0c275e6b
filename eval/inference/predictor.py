"""`caskd predict`: one model's greedy answers to a set of examples, with log-probabilities."""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from caskd.eval.answers import Predictions
from caskd.eval.config import PredictConfig
from caskd.eval.inference.backends import check_backend
from caskd.eval.inference.cascades import (
    RuleFlags,
    calibrated,
    cascade_lines,
    cascade_metadata,
    check_rolls_back,
    max_positions,
    open_cascade,
    rule_flags,
)
from caskd.eval.inference.engine import engine_answers
from caskd.eval.inference.parts import Parts, check_out
from caskd.eval.inference.ready import Ready, Row, RowsOf, answer_row, metadata_of, tasks_of
from caskd.eval.inference.requests import (
    EvalExample,
    build_requests,
    check_requests,
    question_records,
)
from caskd.eval.inference.served import served
from caskd.eval.tasks import Task, describe
from caskd.models import check_openable, longest_first, pick_device
from caskd.models.decoding import (
    LoadedModel,
    TokenCascade,
    check_stop_texts,
    decode_batch,
    hidden_index,
    load_for_decoding,
)
from caskd.store.corpus import ChatOptions
from caskd.store.errors import UsageError
from caskd.store.io import progress, tell

MAX_PARTS = 1000


def predict(config: PredictConfig) -> Predictions | None:
    """Answer every example greedily and write the predictions file.

    Answers do not depend on the batch size, up to the rounding of the kernels. Batches are the same
    for any number of workers and after any kill, so answers are then bit-identical.

    Returns:
        The predictions in the order of the data; None while parts of other workers are missing.

    Raises:
        UsageError: `out` holds something else, the data or the model cannot be read, or a prompt
            does not fit the model.
        IdentityError: existing parts, or a finished file, belong to another request.
    """
    out = Path(config.out)
    _check_numbers(config)
    check_backend(config)
    flags = rule_flags(config)
    check_out(out)
    if config.backend == "transformers":
        return _run(config, _local(config, flags))
    records = list(itertools.islice(question_records(config), config.limit))
    opened = served if config.backend == "server" else engine_answers
    with opened(config, records) as ready:
        return _run(config, ready)


def _local(config: PredictConfig, flags: RuleFlags | None) -> Ready:
    """One model of this process, or two that write each answer together."""
    pick_device(config.device)
    check_openable(config.model, "--model")
    if config.large is not None:
        check_openable(config.large, "--large")
    records = list(itertools.islice(question_records(config), config.limit))
    loaded = load_for_decoding(config.model, "--model", dtype=config.dtype, device=config.device)
    cascade = None if flags is None else open_cascade(config, flags, loaded)
    requests, chat = build_requests(loaded.tokenizer, records, config)
    check_requests(requests, max_positions(loaded, cascade), config.max_new_tokens)
    tasks = tasks_of(config, requests)
    check_stop_texts(loaded.tokenizer, [text for task in tasks.values() for text in task.stop])
    metadata = _metadata(config, loaded, requests, tasks, chat)
    rows = partial(_rows, loaded, config, tasks)
    if cascade is None or flags is None:
        return Ready(requests, tasks, metadata, _each(rows), lambda written: [])
    check_rolls_back(config, cascade, requests)
    cascade, flags = calibrated(cascade, flags, requests, tasks, config.max_new_tokens)
    metadata |= cascade_metadata(loaded, cascade, flags)
    rows = partial(_cascade_rows, cascade, config, tasks)
    lines = partial(cascade_lines, cascade=cascade, requests=requests, flags=flags)
    return Ready(requests, tasks, metadata, _each(rows), lines)


def _each(rows: Callable[[Sequence[EvalExample]], Iterator[Row]]) -> RowsOf:
    """Answer one batch after another."""
    return lambda batches: (list(rows(batch)) for batch in batches)


def _run(config: PredictConfig, ready: Ready) -> Predictions | None:
    out, requests = Path(config.out), ready.requests
    rendered = sum(request.rendered_bos for request in requests)
    if rendered:
        tell(f"{out}: {rendered:,} prompts came rendered with BOS; no second one is added")
    plan = plan_parts([request.size for request in requests], config.batch_size)
    parts = Parts(out, ready.metadata, len(plan))
    _answer_missing(config, requests, plan, parts, ready.rows)
    written = parts.join()
    if written is None:
        left = len(parts.missing())
        tell(f"{out}: {left:,} of {len(plan):,} parts are missing; the last worker joins them")
        return None
    mean, names = written.numbers("quality").mean(), describe(ready.tasks)
    empty = written.num_empty()
    said = f", {empty:,} of them empty" if empty else ""
    tell(f"{out}: {len(written):,} answers of {written.model_name}{said}, {names}: {mean:.4f}")
    for line in ready.lines(written):
        tell(f"{out}: {line}")
    return written


def _answer_missing(
    config: PredictConfig,
    requests: Sequence[EvalExample],
    plan: Sequence[Sequence[Sequence[int]]],
    parts: Parts,
    rows_of: RowsOf,
) -> None:
    """Answer the unfinished parts of this worker, and write each when it is done."""
    missing = parts.missing(config.worker, config.num_workers)
    sizes = [sum(map(len, part)) for part in plan]
    total, left = sum(sizes[config.worker :: config.num_workers]), sum(sizes[p] for p in missing)
    if left < total:
        tell(f"{config.out}: {total - left:,} of {total:,} examples are already answered")
    with progress("predict", total, "examples", done=total - left) as shown:
        wanted = (batch for part in missing for batch in plan[part])
        found = rows_of([requests[index] for index in batch] for batch in wanted)
        for part in missing:
            rows: list[Row] = []
            for batch in plan[part]:
                rows += next(found)
                shown.advance(len(batch))
            parts.write(part, rows)


def plan_parts(prompt_lengths: Sequence[int], batch_size: int) -> list[list[list[int]]]:
    """Batches of each part: one, or a few so that there are at most `MAX_PARTS` parts."""
    found = list(batches(prompt_lengths, batch_size))
    size = -(-len(found) // MAX_PARTS)
    return [found[start : start + size] for start in range(0, len(found), size)]


def batches(prompt_lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Indices of the examples of each batch, longest prompts first: padding is short, and a batch
    that does not fit in memory fails at once."""
    order = longest_first(np.array(prompt_lengths, dtype=np.int64)).tolist()
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def _rows(
    loaded: LoadedModel,
    config: PredictConfig,
    tasks: dict[str, Task],
    requests: Sequence[EvalExample],
) -> Iterator[Row]:
    """Rows of one model's answers to a batch."""
    started = time.perf_counter()
    answers = decode_batch(
        loaded,
        [request.prompt for request in requests],
        config.max_new_tokens,
        stop=[tasks[request.task].stop for request in requests],
        options=[request.option_ids for request in requests],
        hidden_layer=config.hidden,
    )
    seconds = (time.perf_counter() - started) / len(requests)
    for request, answer in zip(requests, answers, strict=True):
        yield answer_row(request, answer, tasks[request.task], seconds)


def _cascade_rows(
    cascade: TokenCascade,
    config: PredictConfig,
    tasks: dict[str, Task],
    requests: Sequence[EvalExample],
) -> Iterator[Row]:
    """Rows of answers that two models write together, one example at a time."""
    for request in requests:
        task, started = tasks[request.task], time.perf_counter()
        answer = cascade.answer(request.prompt, config.max_new_tokens, task.stop)
        yield answer_row(request, answer, task, time.perf_counter() - started)


def _metadata(
    config: PredictConfig,
    loaded: LoadedModel,
    requests: Sequence[EvalExample],
    tasks: dict[str, Task],
    chat: ChatOptions,
) -> dict[str, Any]:
    hidden = None if config.hidden is None else hidden_index(loaded.model, config.hidden)
    return metadata_of(
        config,
        requests,
        tasks,
        chat,
        model=loaded.identity,
        decoding={
            "stop_ids": list(loaded.stop_ids),
            "hidden_layer": hidden,
            "device": loaded.model.device.type,  # seconds on different devices are not comparable
        },
        versions={name: version(name) for name in ("torch", "transformers")},
    )


def _check_numbers(config: PredictConfig) -> None:
    for name in ("max_new_tokens", "batch_size", "num_workers", "limit"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise UsageError(
                f"--{name.replace('_', '-')} {value}: expected 1 or more; pass another number"
            )
    if "" in config.stop:
        raise UsageError(
            "--stop '': would empty every answer; expected a text; omit it, or pass --stop '\\n'"
        )
    if not 0 <= config.worker < config.num_workers:
        raise UsageError(
            f"--worker {config.worker} with --num-workers {config.num_workers}: expected 0 to "
            f"{config.num_workers - 1}; pass another number"
        )
