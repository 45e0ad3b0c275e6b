"""From a record to tokens: what the teacher is shown, and what a student is asked in prediction.

Legend: T tokens of one example, V vocabulary. The tokenizer (a transformers one) is passed in.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from caskd.store.alignment import num_rows
from caskd.store.chat import conversation_segments, last_reply
from caskd.store.corpus import Columns, Record, column_value, decide_columns, record_task
from caskd.store.errors import UsageError

OnLong = Literal["error", "truncate", "skip"]
Segment = tuple[list[int], bool]  # token ids, and whether they are response


@dataclass(frozen=True, kw_only=True)
class TextOptions:
    """How text becomes an example; every field is part of a store's identity."""

    eos: bool = True
    max_length: int
    on_long: OnLong = "error"
    vocab_size: int | None = None
    """Ids from here on are not the teacher's: an example that has one gets no rows."""


@dataclass(frozen=True)
class TokenizedExample:
    """One example: `token_ids` and `is_response` [T]; examples without rows have T = 0.

    `status` is ok, truncated, too_long, empty or out_of_vocabulary; the last three have no rows.
    """

    token_ids: npt.NDArray[np.uint32]
    is_response: npt.NDArray[np.uint8]
    status: str
    source_index: int
    task: str


def tokenize_example(
    tokenizer: Any, record: Record, columns: Columns, options: TextOptions, source_index: int
) -> TokenizedExample:
    """Render and tokenise one record.

    Raises:
        UsageError: a column is missing or not text; no EOS token where one is asked for; an
            over-long example with on_long "error"; a chat template whose prefixes do not match.
    """
    columns = decide_columns(record, columns)
    segments = _segments(tokenizer, record, columns, options.eos)
    ids = np.array([id_ for part, _ in segments for id_ in part], dtype=np.uint32)
    mask = np.array([flag for part, flag in segments for _ in part], dtype=np.uint8)
    last = int(np.flatnonzero(mask)[-1]) + 1 if mask.any() else 0
    ids, mask = ids[:last], mask[:last]  # nothing after the last response token is ever read
    status = _status(ids, mask, options)
    if len(ids) > options.max_length and options.on_long == "error":
        raise UsageError(
            f"record {source_index} has {len(ids):,} tokens, the limit is {options.max_length:,}; "
            f"type --on-long truncate or --on-long skip, or give a larger --max-length"
        )
    length = {"ok": last, "truncated": options.max_length}.get(status, 0)
    task = record_task(record, columns)
    return TokenizedExample(ids[:length], mask[:length], status, source_index, task)


def prompt_ids(tokenizer: Any, record: Record, columns: Columns) -> list[int]:
    """Exactly the tokens that capture shows the teacher before the (last) response.

    For messages that is everything up to the last assistant turn, with the generation prompt.
    """
    columns = decide_columns(record, columns)
    segments = _segments(tokenizer, record, columns, eos=False)
    replies = [n for n, (part, is_response) in enumerate(segments) if is_response]
    before = segments[: replies[-1]] if replies else segments
    return [id_ for part, _ in before for id_ in part]


def reference_text(record: Record, columns: Columns) -> str:
    """The expected answer: the response, or the last assistant turn's content, or the text."""
    columns = decide_columns(record, columns)
    if columns.kind == "messages":
        return last_reply(column_value(record, columns, "messages"))
    role = "response" if columns.kind == "prompt" else "text"
    return str(column_value(record, columns, role))


def _segments(tokenizer: Any, record: Record, columns: Columns, eos: bool) -> list[Segment]:
    """The example in order, cut where it changes between prompt and response."""
    if columns.kind == "messages":
        rendered = conversation_segments(tokenizer, column_value(record, columns, "messages"))
        return [s for text, flag in rendered for s in _chat_segment(tokenizer, text, flag)]
    prompt = column_value(record, columns, "prompt") if columns.kind == "prompt" else ""
    response = column_value(record, columns, "response" if columns.kind == "prompt" else "text")
    ids = _encode(tokenizer, response)
    if ids and eos and ids[-1] != _eos_id(tokenizer):
        ids.append(_eos_id(tokenizer))
    return [(_leading_special(tokenizer) + _encode(tokenizer, prompt), False), (ids, True)]


def _chat_segment(tokenizer: Any, text: str, is_response: bool) -> list[Segment]:
    """One rendered piece; of a reply, what the template writes after its end is not response."""
    ids = _encode(tokenizer, text)
    end = _end_of_turn(tokenizer, ids) if is_response else len(ids)
    return [(ids[:end], is_response), (ids[end:], False)]


def _end_of_turn(tokenizer: Any, ids: list[int]) -> int:
    """Where a reply ends: after its last EOS, or after a special token that only blanks follow.

    The second is for templates that end a turn with a token other than EOS (<end_of_turn>).
    """
    eos = tokenizer.eos_token_id
    if eos is not None and eos in ids:
        return len(ids) - ids[::-1].index(eos)
    special = set(tokenizer.all_special_ids)
    special |= {id_ for id_, token in tokenizer.added_tokens_decoder.items() if token.special}
    ends = [n + 1 for n, id_ in enumerate(ids) if id_ in special]
    if ends and not tokenizer.decode(ids[ends[-1] :]).strip():
        return ends[-1]
    return len(ids)


def _encode(tokenizer: Any, text: str) -> list[int]:
    if not text:
        return []
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _eos_id(tokenizer: Any) -> int:
    if tokenizer.eos_token_id is None:
        raise UsageError("the tokenizer has no EOS token, expected one; type --no-eos")
    return int(tokenizer.eos_token_id)


@lru_cache(maxsize=4)
def _leading_special(tokenizer: Any) -> list[int]:
    """What the tokenizer puts before a text by itself: BOS, as a rule, or nothing."""
    plain, full = _encode(tokenizer, "a"), list(tokenizer("a")["input_ids"])
    starts = [n for n in range(len(full)) if full[n : n + len(plain)] == plain]
    return full[: starts[0]] if starts else []


def _status(ids: npt.NDArray[np.uint32], mask: npt.NDArray[np.uint8], options: TextOptions) -> str:
    if num_rows(mask) == 0:
        return "empty"
    if options.vocab_size is not None and int(ids.max()) >= options.vocab_size:
        return "out_of_vocabulary"
    if len(ids) <= options.max_length:
        return "ok"
    fits = options.on_long == "truncate" and num_rows(mask[: options.max_length]) > 0
    return "truncated" if fits else "too_long"
