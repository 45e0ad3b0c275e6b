"""`caskd predict`: one model's greedy answers to a set of examples, with log-probabilities."""

import itertools
import json
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from caskd.eval.answers import Predictions, digest
from caskd.eval.config import PredictConfig
from caskd.eval.inference.decoding import Answer, decode_batch, hidden_index
from caskd.eval.inference.models import LoadedModel, load_model
from caskd.eval.inference.parts import Parts, check_out
from caskd.eval.inference.requests import Question, ask_all, check_questions
from caskd.eval.tasks import Task, choose_tasks, describe, quality
from caskd.store.corpus import read_records
from caskd.store.errors import UsageError
from caskd.store.io import progress

MAX_PARTS = 1000


def predict(config: PredictConfig) -> Predictions | None:
    """Answer every example greedily and write the predictions file.

    Answers do not depend on the batch size, up to the rounding of the kernels in use. Batches are
    the same for any number of workers and after any kill, so that the answers are so to the bit.

    Returns:
        What was written, in the order of the data; None while other workers' parts are missing.

    Raises:
        UsageError: the file holds something else, the data or the model cannot be read, or a prompt
            does not fit.
        IdentityError: the parts that are there answer another request.
    """
    out = Path(config.out)
    _check_numbers(config)
    check_out(out)
    records = list(itertools.islice(read_records(config.data), config.limit))
    loaded = load_model(config)
    questions = ask_all(loaded.tokenizer, records, config)
    check_questions(questions, loaded.max_positions, config.max_new_tokens)
    stop = [text.replace("\\n", "\n").replace("\\t", "\t") for text in config.stop]
    tasks = choose_tasks((one.task for one in questions), config.task_metric, stop)
    plan = plan_parts([len(question.prompt) for question in questions], config.batch_size)
    parts = Parts(out, _request(config, loaded, questions, tasks), len(plan))
    _answer_missing(config, loaded, questions, tasks, plan, parts)
    written = parts.join()
    if written is None:
        left = len(parts.missing())
        print(f"{out}: {left:,} of {len(plan):,} parts are missing; whoever writes the last joins")
        return None
    mean, names = written.numbers("quality").mean(), describe(tasks)
    print(f"{out}: {len(written):,} answers of {written.model_name}, {names}: {mean:.4f}")
    return written


def _answer_missing(
    config: PredictConfig,
    loaded: LoadedModel,
    questions: Sequence[Question],
    tasks: dict[str, Task],
    plan: Sequence[Sequence[Sequence[int]]],
    parts: Parts,
) -> None:
    """Answer this worker's parts that are not finished, and keep each when it is."""
    missing = parts.missing(config.worker, config.num_workers)
    sizes = [sum(map(len, part)) for part in plan]
    total, left = sum(sizes[config.worker :: config.num_workers]), sum(sizes[p] for p in missing)
    if left < total:
        print(f"{config.out}: {total - left:,} of {total:,} examples were answered before")
    with progress("predict", total, "examples", done=total - left) as shown:
        for part in missing:
            rows: list[dict[str, Any]] = []
            for batch in plan[part]:
                rows += _rows(loaded, [questions[index] for index in batch], config, tasks)
                shown.advance(len(batch))
            parts.write(part, rows)


def plan_parts(prompt_lengths: Sequence[int], batch_size: int) -> list[list[list[int]]]:
    """The batches of each part: one, or a few where there would be more than `MAX_PARTS` parts."""
    found = list(batches(prompt_lengths, batch_size))
    size = -(-len(found) // MAX_PARTS)
    return [found[start : start + size] for start in range(0, len(found), size)]


def batches(prompt_lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Places of the examples of each batch: longest prompts first, so that padding is short and a
    batch that does not fit in memory shows at once."""
    order = sorted(range(len(prompt_lengths)), key=lambda i: (-prompt_lengths[i], i))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def _rows(
    loaded: LoadedModel,
    questions: Sequence[Question],
    config: PredictConfig,
    tasks: dict[str, Task],
) -> Iterator[dict[str, Any]]:
    started = time.perf_counter()
    answers = decode_batch(
        loaded,
        [question.prompt for question in questions],
        config.max_new_tokens,
        stop=[tasks[question.task].stop for question in questions],
        options=[question.option_ids for question in questions],
        hidden_layer=config.hidden,
    )
    seconds = (time.perf_counter() - started) / len(questions)
    for question, answer in zip(questions, answers, strict=True):
        yield _row(question, answer, tasks[question.task], seconds)


def _row(question: Question, answer: Answer, task: Task, seconds: float) -> dict[str, Any]:
    several = len(question.references) > 1
    return {
        "example_id": question.example_id,
        "source_index": question.source_index,
        "prompt_digest": digest(np.asarray(question.prompt, dtype="<u4").tobytes()),
        "question_digest": question.question_digest,
        "task": question.task,
        "text": answer.text,
        "token_ids": answer.token_ids,
        "token_logprobs": answer.token_logprobs,
        "token_margins": answer.token_margins,
        "token_entropies": answer.token_entropies,
        "option_logprobs": answer.option_logprobs,
        "hidden": answer.hidden,
        "reference": question.references[0],
        "references": question.references if several else None,
        "options": question.options or None,
        "quality": quality(task, answer.text, question.references, question.options),
        "prompt_tokens": len(question.prompt),
        "output_tokens": len(answer.token_ids),
        "seconds": seconds,
    }


def _request(
    config: PredictConfig,
    loaded: LoadedModel,
    questions: Sequence[Question],
    tasks: dict[str, Task],
) -> dict[str, Any]:
    """What is asked of which model: parts of one file agree in all of it."""
    hidden = None if config.hidden is None else hidden_index(loaded.model, config.hidden)
    first, *rest = tasks.values()
    return {
        "model": loaded.identity,
        "decoding": {
            "strategy": "greedy",
            "max_new_tokens": config.max_new_tokens,
            "batch_size": config.batch_size,
            "stop_ids": list(loaded.stop_ids),
            "stop": [text for text in first.stop if all(text in one.stop for one in rest)],
            "hidden_layer": hidden,
            "device": loaded.model.device.type,  # seconds of unlike devices do not mix
        },
        "tasks": {
            name: {"metric": task.metric, "normalize": task.normalize, "stop": list(task.stop)}
            for name, task in tasks.items()
        },
        "quality": describe(tasks),
        "data_digest": digest(json.dumps([one.content for one in questions]).encode()),
        "versions": {name: version(name) for name in ("torch", "transformers")},
    }


def _check_numbers(config: PredictConfig) -> None:
    for name in ("max_new_tokens", "batch_size", "num_workers", "limit"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise UsageError(f"got --{name.replace('_', '-')} {value}, expected 1 or more")
    if not 0 <= config.worker < config.num_workers:
        raise UsageError(
            f"got --worker {config.worker} of --num-workers {config.num_workers}, expected "
            f"0 to {config.num_workers - 1}"
        )
