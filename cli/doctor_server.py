"""`caskd doctor --url`: what serves there, its limits, its speed, whether URLs serve one model."""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

from caskd.models.engines import (
    CONCURRENCY,
    NonFiniteError,
    RequestRefusedError,
    ServedModel,
    fixed_prompts,
    measure_fingerprint,
)
from caskd.store.errors import CaskdError
from caskd.store.fingerprint import FINGERPRINT, fingerprint_distance
from caskd.store.format import identity_differences

CELLS = (256, 128, 64, 32, 20, 8)
"""Numbers of log-probabilities that are tried, the largest first."""
WANTED_CELLS = 64
# Without the tokenizer, only ids that every vocabulary has.
_NUM_IDS, _ANY_ID = 32, 1 << 31

Line = tuple[str, Literal["ok", "note", "broken"], str, str]
"""Name, verdict, what was found, and the fix."""


def check_servers(urls: Sequence[str], served_model: str | None) -> Iterator[Line]:
    """Findings on each URL, and the distance of its answers from those of the first."""
    first: dict[str, Any] | None = None
    for number, url in enumerate(urls):
        name = f"server {number}"
        try:
            model = ServedModel.open(url, _ANY_ID, _ANY_ID, served_model=served_model)
        except CaskdError as error:
            yield name, "broken", str(error), ""
            continue
        try:
            limit = "no limit named" if model.limit is None else f"{model.limit:,} tokens"
            served = getattr(model.api, "model", "its only model")
            yield name, "ok", f"{model.engine} serves {served}, {limit}", ""
            yield _cells(name, model)
            yield _speed(name, model)
            found = measure_fingerprint(
                lambda prompt, model=model: model.score(prompt, 1, 8),  # type: ignore[misc]
                fixed_prompts(_NUM_IDS, 0),
            )
            yield _fingerprint(name, found, first)
            first = first or found
        except (CaskdError, NonFiniteError) as error:
            text = str(error) or "the model produced NaN for a plain prompt"
            yield name, "broken", text, ""
        finally:
            model.close()


def _cells(name: str, model: ServedModel) -> Line:
    fix = f"start the server with --max-logprobs {WANTED_CELLS}"
    for k in CELLS:
        try:
            model.score([0] * 4, 1, k)
        except RequestRefusedError as refused:
            if refused.status not in (400, 422):  # not about the number
                raise
            continue
        enough = k >= WANTED_CELLS
        text = f"gives {k} or more log-probabilities a token"
        return f"{name} top-k", "ok" if enough else "note", text, "" if enough else fix
    return f"{name} top-k", "broken", f"gives fewer than {CELLS[-1]} log-probabilities", fix


def _speed(name: str, model: ServedModel) -> Line:
    prompts = [a + b for a in fixed_prompts(_NUM_IDS, 1) for b in fixed_prompts(_NUM_IDS, 2)[:4]]
    began = time.monotonic()
    with ThreadPoolExecutor(CONCURRENCY) as pool:
        rows = sum(len(r.label_ranks) for r in pool.map(lambda p: model.score(p, 1, 8), prompts))
    speed = rows / (time.monotonic() - began)
    text = f"{speed:,.0f} rows/s, {CONCURRENCY} short prompts at a time, 8 log-probabilities a row"
    return f"{name} speed", "ok", text, ""


def _fingerprint(name: str, found: dict[str, Any], first: dict[str, Any] | None) -> Line:
    values = [value for row in found["label_logprobs"] for value in row]
    tolerance = found["tolerance"]
    text = (
        f"mean {sum(values) / len(values):.4f} nats over {len(values)} fixed tokens, tolerance "
        f"{tolerance['mean']:.2g} on average and {tolerance['max']:.2g} at most"
    )
    if first is None:
        return f"{name} fingerprint", "ok", text, ""
    mean, largest = fingerprint_distance(first, found)
    text += f"; {mean:.2g} and {largest:.2g} from the first URL"
    if any(identity_differences({FINGERPRINT: first}, {FINGERPRINT: found})):
        fix = "serve one model behind all URLs of a capture"
        return f"{name} fingerprint", "broken", text, fix
    return f"{name} fingerprint", "ok", text, ""
