"""`caskd predict`: one model's greedy answers to a set of examples, with log-probabilities."""

import itertools
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from caskd.eval.config import PredictConfig
from caskd.eval.models import Answer, LoadedModel, decode_batch, load_model
from caskd.eval.predictions import (
    QUALITY,
    Predictions,
    digest,
    exact_match,
    refuse_existing,
    write_predictions,
)
from caskd.eval.questions import Question, ask, check_questions, decide
from caskd.store.corpus import read_records
from caskd.store.errors import UsageError
from caskd.store.progress import progress


def predict(config: PredictConfig) -> Predictions:
    """Answer every example greedily and write the predictions file.

    Answers do not depend on the batch size, up to the rounding of the kernels in use.

    Returns:
        What was written, in the order of the data.

    Raises:
        UsageError: the file exists, the data or the model cannot be read, or a prompt does not fit.
    """
    out = Path(config.out)
    refuse_existing(out)
    _check_sizes(config)
    records = list(itertools.islice(read_records(config.data), config.limit))
    columns = decide(config, records[0])
    loaded = load_model(config)
    questions = [
        ask(loaded.tokenizer, record, columns, index) for index, record in enumerate(records)
    ]
    check_questions(questions, loaded.max_positions, config.max_new_tokens)
    rows: list[dict[str, Any]] = [{}] * len(questions)
    with progress("predict", len(questions), "examples") as shown:
        for batch in batches([len(question.prompt) for question in questions], config.batch_size):
            for index, row in zip(
                batch, _rows(loaded, [questions[i] for i in batch], config), strict=True
            ):
                rows[index] = row
            shown.advance(len(batch))
    written = write_predictions(out, rows, _metadata(config, loaded, questions))
    mean = written.numbers("quality").mean()
    print(f"{out}: {len(written):,} answers of {written.model_name}, {QUALITY} {mean:.4f}")
    return written


def batches(prompt_lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Places of the examples of each batch: longest prompts first, so that padding is short and a
    batch that does not fit in memory shows at once."""
    order = sorted(range(len(prompt_lengths)), key=lambda i: (-prompt_lengths[i], i))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def _rows(
    loaded: LoadedModel, questions: Sequence[Question], config: PredictConfig
) -> Iterator[dict[str, Any]]:
    started = time.perf_counter()
    answers = decode_batch(
        loaded, [question.prompt for question in questions], config.max_new_tokens
    )
    seconds = (time.perf_counter() - started) / len(questions)
    for question, answer in zip(questions, answers, strict=True):
        yield _row(loaded.tokenizer, question, answer, seconds)


def _row(tokenizer: Any, question: Question, answer: Answer, seconds: float) -> dict[str, Any]:
    text = tokenizer.decode(answer.token_ids, skip_special_tokens=True)
    return {
        "example_id": question.example_id,
        "source_index": question.source_index,
        "prompt_digest": digest(np.asarray(question.prompt, dtype="<u4").tobytes()),
        "question_digest": question.question_digest,
        "task": question.task,
        "text": text,
        "token_ids": answer.token_ids,
        "token_logprobs": answer.token_logprobs,
        "reference": question.reference,
        "quality": exact_match(text, question.reference),
        "prompt_tokens": len(question.prompt),
        "output_tokens": len(answer.token_ids),
        "seconds": seconds,
    }


def _metadata(
    config: PredictConfig, loaded: LoadedModel, questions: Sequence[Question]
) -> dict[str, Any]:
    asked = [[q.example_id, q.task, q.question_digest, q.reference] for q in questions]
    return {
        "model": loaded.identity,
        "decoding": {
            "strategy": "greedy",
            "max_new_tokens": config.max_new_tokens,
            "batch_size": config.batch_size,
            "stop_ids": list(loaded.stop_ids),
        },
        "data_digest": digest(json.dumps(asked).encode()),
        "quality": QUALITY,
    }


def _check_sizes(config: PredictConfig) -> None:
    for name in ("max_new_tokens", "batch_size", "limit"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise UsageError(f"got --{name.replace('_', '-')} {value}, expected 1 or more")
