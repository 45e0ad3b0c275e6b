"""From a record to tokens: what the teacher is shown, and what a student is asked in prediction.

Legend: T tokens of one example, V vocabulary. The tokenizer (a transformers one) is passed in.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from caskd.store.corpus.alignment import num_rows
from caskd.store.corpus.chat import conversation_segments, last_reply
from caskd.store.corpus.files import Columns, Record, column_value, decide_columns, record_task
from caskd.store.errors import UsageError

OnLong = Literal["error", "truncate", "skip"]
Segment = tuple[list[int], bool]  # token ids, and whether they are response


@dataclass(frozen=True, kw_only=True)
class TextOptions:
    """How text becomes an example; every field is part of a store's identity."""

    eos: bool = True
    max_length: int
    on_long: OnLong = "error"
    """What happens to a longer example; "error" marks it too_long, and who plans stops."""
    vocab_size: int | None = None
    """Ids from here on are not the teacher's: an example that has one gets no rows."""


@dataclass(frozen=True)
class TokenizedExample:
    """One example: `token_ids` and `is_response` [T]; examples without rows have T = 0.

    `status` is ok, truncated, too_long, empty, out_of_vocabulary or duplicate; the last four have
    no rows. `full_length` counts its tokens before any of that.
    """

    token_ids: npt.NDArray[np.uint32]
    is_response: npt.NDArray[np.uint8]
    status: str
    source_index: int
    task: str
    full_length: int = 0


def tokenize_example(
    tokenizer: Any, record: Record, columns: Columns, options: TextOptions, source_index: int
) -> TokenizedExample:
    """Render and tokenise one record; see `tokenize_examples`."""
    return tokenize_examples(tokenizer, [record], columns, options, source_index)[0]


def tokenize_examples(
    tokenizer: Any,
    records: Sequence[Record],
    columns: Columns,
    options: TextOptions,
    first_index: int,
) -> list[TokenizedExample]:
    """Render and tokenise records, all their texts in one call of the tokenizer.

    Args:
        tokenizer: of the teacher.
        records: some that follow each other in the corpus.
        columns: where their text is.
        options: how it becomes examples.
        first_index: number of the first record in the corpus.

    Raises:
        UsageError: names the record: a column is missing or not text; no EOS token where one is
            asked for; a chat template that refuses it, or whose prefixes do not match.
    """
    pieces, decided = [], []
    for index, record in enumerate(records, start=first_index):
        with _naming(index):
            decided.append(decide_columns(record, columns))
            pieces.append(_pieces(tokenizer, record, decided[-1]))
    encoded = iter(_encode_all(tokenizer, [text for part in pieces for text, _ in part]))
    examples = []
    for number, (record, part, own) in enumerate(zip(records, pieces, decided, strict=True)):
        ids = [next(encoded) for _ in part]
        segments = _segments(tokenizer, part, ids, own, options.eos)
        task = record_task(record, own)
        examples.append(_example(segments, options, first_index + number, task))
    return examples


def _example(
    segments: Sequence[Segment], options: TextOptions, source_index: int, task: str
) -> TokenizedExample:
    ids = np.array([id_ for part, _ in segments for id_ in part], dtype=np.uint32)
    mask = np.array([flag for part, flag in segments for _ in part], dtype=np.uint8)
    last = int(np.flatnonzero(mask)[-1]) + 1 if mask.any() else 0
    ids, mask = ids[:last], mask[:last]  # nothing after the last response token is ever read
    status = _status(ids, mask, options)
    length = {"ok": last, "truncated": options.max_length}.get(status, 0)
    return TokenizedExample(ids[:length], mask[:length], status, source_index, task, last)


@contextmanager
def _naming(index: int) -> Iterator[None]:
    """Errors inside say which record it is."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"record {index}: {error}") from error


def prompt_ids(tokenizer: Any, record: Record, columns: Columns) -> list[int]:
    """Exactly the tokens that capture shows the teacher before the (last) response.

    For messages that is everything up to the last assistant turn, with the generation prompt.
    """
    columns = decide_columns(record, columns)
    pieces = _pieces(tokenizer, record, columns)
    ids = _encode_all(tokenizer, [text for text, _ in pieces])
    segments = _segments(tokenizer, pieces, ids, columns, eos=False)
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


def _pieces(tokenizer: Any, record: Record, columns: Columns) -> list[tuple[str, bool]]:
    """The text of an example in order, and whether each piece is response."""
    if columns.kind == "messages":
        return conversation_segments(tokenizer, column_value(record, columns, "messages"))
    prompt = column_value(record, columns, "prompt") if columns.kind == "prompt" else ""
    response = column_value(record, columns, "response" if columns.kind == "prompt" else "text")
    return [(prompt, False), (response, True)]


def _segments(
    tokenizer: Any,
    pieces: Sequence[tuple[str, bool]],
    encoded: Sequence[list[int]],
    columns: Columns,
    eos: bool,
) -> list[Segment]:
    """The tokens of pieces, with what the tokenizer and we put around them."""
    if columns.kind == "messages":
        both = zip(pieces, encoded, strict=True)
        return [s for (_, flag), ids in both for s in _chat_segment(tokenizer, ids, flag)]
    prompt, response = encoded
    if response and eos and response[-1] != _eos_id(tokenizer):
        response = [*response, _eos_id(tokenizer)]
    return [(_leading_special(tokenizer) + prompt, False), (response, True)]


def _chat_segment(tokenizer: Any, ids: list[int], is_response: bool) -> list[Segment]:
    """One rendered piece; of a reply, what the template writes after its end is not response."""
    end = _end_of_turn(tokenizer, ids) if is_response else len(ids)
    return [(ids[:end], is_response), (ids[end:], False)]


def _end_of_turn(tokenizer: Any, ids: list[int]) -> int:
    """Where a reply ends: after its last EOS, or after a special token that only blanks follow.

    The second is for templates that end a turn with a token other than EOS (<end_of_turn>).
    """
    eos = tokenizer.eos_token_id
    if eos is not None and eos in ids:
        return len(ids) - ids[::-1].index(eos)
    special = _special_ids(tokenizer)
    ends = [n + 1 for n, id_ in enumerate(ids) if id_ in special]
    if ends and not tokenizer.decode(ids[ends[-1] :]).strip():
        return ends[-1]
    return len(ids)


@lru_cache(maxsize=4)
def _special_ids(tokenizer: Any) -> frozenset[int]:
    added = tokenizer.added_tokens_decoder.items()
    return frozenset(tokenizer.all_special_ids) | {id_ for id_, token in added if token.special}


def _encode_all(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Ids of each text alone; one call for all of them costs a quarter of one call each."""
    written = [text for text in texts if text]
    if not written:
        return [[] for _ in texts]
    encoded = iter(tokenizer(written, add_special_tokens=False, verbose=False)["input_ids"])
    return [list(next(encoded)) if text else [] for text in texts]


def _eos_id(tokenizer: Any) -> int:
    if tokenizer.eos_token_id is None:
        raise UsageError("the tokenizer has no EOS token, expected one; type --no-eos")
    return int(tokenizer.eos_token_id)


@lru_cache(maxsize=4)
def _leading_special(tokenizer: Any) -> list[int]:
    """What the tokenizer puts before a text by itself: BOS, as a rule, or nothing."""
    plain, full = _encode_all(tokenizer, ["a"])[0], list(tokenizer("a")["input_ids"])
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
