"""The behavioural fingerprint of a served model: its answers to fixed prompts.

A server proves nothing about its weights. The same prompts, asked again, tell another model from
the one that was planned. Values are compared with a tolerance, never as a hash: a model answers
slightly differently in a batch than alone.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from caskd.models.engines.prompt_rows import PromptRows
from caskd.store.fingerprint import fingerprint_distance

NUM_PROMPTS, PROMPT_TOKENS, TOP = 32, 16, 8
MARGIN = 4.0
"""The tolerance in units of the distance between two askings."""
LEAST_MEAN, LEAST_MAX = 5e-4, 5e-3
"""Smallest tolerance in nats: float32 kernels of another batch or a later release stay below it."""
DECIMALS = 6

Score = Callable[[Sequence[int]], PromptRows]
"""Rows of all tokens of a prompt but the first, with `TOP` cells."""
ScoreAll = Callable[[Sequence[Sequence[int]]], Sequence[PromptRows]]
"""The same of several prompts that are computed together."""


def fixed_prompts(num_ids: int, key: int) -> list[list[int]]:
    """The prompts [32][16] of a vocabulary of this size; `key` is from its digest."""
    numbers = np.random.Philox(key=key).random_raw(NUM_PROMPTS * PROMPT_TOKENS)
    ids = (numbers % np.uint64(num_ids)).astype(np.int64)
    found: list[list[int]] = ids.reshape(NUM_PROMPTS, PROMPT_TOKENS).tolist()
    return found


def key_of(vocab_digest: str) -> int:
    """The key of `fixed_prompts` for a vocabulary."""
    return int(vocab_digest[:16], 16)


def ask_fingerprint(score: Score, prompts: Sequence[Sequence[int]]) -> dict[str, Any]:
    """The answers to the prompts, one after another, in JSON types."""
    return _answers([score(prompt) for prompt in prompts])


def measure_fingerprint(
    score: Score, prompts: Sequence[Sequence[int]], score_all: ScoreAll | None = None
) -> dict[str, Any]:
    """The answers with the tolerance that asking twice shows: alone and all at once.

    Args:
        score: asks one prompt; without `score_all`, many threads call it at once, too.
        prompts: from `fixed_prompts`.
        score_all: asks all of them at once.
    """
    alone = ask_fingerprint(score, prompts)
    if score_all is not None:
        together = _answers(score_all(prompts))
    else:
        with ThreadPoolExecutor(max_workers=len(prompts)) as pool:
            together = _answers(list(pool.map(score, prompts)))
    mean, largest = fingerprint_distance(alone, together)
    tolerance = {
        "mean": round(max(LEAST_MEAN, MARGIN * mean), DECIMALS),
        "max": round(max(LEAST_MAX, MARGIN * largest), DECIMALS),
    }
    return {**alone, "tolerance": tolerance}


def _answers(rows: Sequence[PromptRows]) -> dict[str, Any]:
    return {
        "label_logprobs": [_rounded(row.label_logprobs) for row in rows],
        "top_ids": [row.ids[-1].tolist() for row in rows],
        "top_logprobs": [_rounded(row.logprobs[-1]) for row in rows],
    }


def _rounded(values: Any) -> list[float]:
    # -inf has no place in JSON: a token that the model excludes counts as very unlikely.
    found: list[float] = np.maximum(values.astype(np.float64), -1e4).round(DECIMALS).tolist()
    return found
