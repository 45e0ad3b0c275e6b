"""Tokenises records: the teacher's input during capture, and a model's prompt in prediction.

Legend: T tokens of one example, V vocabulary. The caller passes a transformers tokenizer.
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
from caskd.store.corpus.columns import Columns, Record, column_value, decide_columns, record_task
from caskd.store.errors import UsageError

OnLong = Literal["error", "truncate", "skip"]
Segment = tuple[list[int], bool]
"""Token ids, and whether they belong to the response."""


@dataclass(frozen=True, kw_only=True)
class TextOptions:
    """Options of tokenisation; every field is part of a store's identity."""

    eos: bool = True
    max_length: int
    on_long: OnLong = "error"
    """Treatment of an example longer than `max_length`; "error" marks it too_long."""
    vocab_size: int | None = None
    """Size of the teacher's vocabulary; an example with a larger id gets no rows."""


@dataclass(frozen=True)
class TokenizedExample:
    """One example: `token_ids` and `is_response` [T]; examples without rows have T = 0.

    `status` is ok, truncated, too_long, empty, out_of_vocabulary or duplicate; the last four have
    no rows. `full_length` is the number of tokens before truncation or rejection.
    """

    token_ids: npt.NDArray[np.uint32]
    is_response: npt.NDArray[np.uint8]
    status: str
    source_index: int
    task: str
    full_length: int = 0


def tokenize_examples(
    tokenizer: Any,
    records: Sequence[Record],
    columns: Columns,
    options: TextOptions,
    first_index: int,
) -> list[TokenizedExample]:
    """Render and tokenise records with one call of the tokenizer.

    Args:
        tokenizer: the teacher's tokenizer.
        records: consecutive records of the corpus.
        columns: names of the text columns.
        options: options of tokenisation.
        first_index: index of the first record in the corpus.

    Raises:
        UsageError: a column is missing or not text; the tokenizer lacks the EOS token that
            `options.eos` needs; the chat template rejects the record or is not prefix-stable.
            The message has the record's index.
    """
    pieces, columns_of = [], []
    for index, record in enumerate(records, start=first_index):
        with _name_record(index):
            columns_of.append(decide_columns(record, columns))
            pieces.append(_pieces(tokenizer, record, columns_of[-1]))
    encoded = iter(_encode_all(tokenizer, [text for part in pieces for text, _ in part]))
    examples = []
    parts = zip(records, pieces, columns_of, strict=True)
    for index, (record, part, decided) in enumerate(parts, start=first_index):
        ids = [next(encoded) for _ in part]
        segments = _segments(tokenizer, part, ids, decided, options.eos)
        examples.append(_example(segments, options, index, record_task(record, decided)))
    return examples


def _example(
    segments: Sequence[Segment], options: TextOptions, source_index: int, task: str
) -> TokenizedExample:
    ids = np.array([id_ for part, _ in segments for id_ in part], dtype=np.uint32)
    mask = np.array([flag for part, flag in segments for _ in part], dtype=np.uint8)
    last = int(np.flatnonzero(mask)[-1]) + 1 if mask.any() else 0
    ids, mask = ids[:last], mask[:last]  # no model reads tokens after the last response token
    status = _status(ids, mask, options)
    length = {"ok": last, "truncated": options.max_length}.get(status, 0)
    return TokenizedExample(ids[:length], mask[:length], status, source_index, task, last)


@contextmanager
def _name_record(index: int) -> Iterator[None]:
    """Prefix errors with the record's index."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"record {index}: {error}") from error


def prompt_ids(tokenizer: Any, record: Record, columns: Columns) -> list[int]:
    """The prompt's tokens, exactly as capture puts them before the (last) response.

    For messages: all turns before the last assistant turn, with the generation prompt.
    """
    columns = decide_columns(record, columns)
    pieces = _pieces(tokenizer, record, columns)
    ids = _encode_all(tokenizer, [text for text, _ in pieces])
    segments = _segments(tokenizer, pieces, ids, columns, eos=False)
    replies = [n for n, (part, is_response) in enumerate(segments) if is_response]
    before = segments[: replies[-1]] if replies else segments
    return [id_ for part, _ in before for id_ in part]


def reference_text(record: Record, columns: Columns) -> str:
    """The expected output: the response, the last assistant turn's content, or the text."""
    columns = decide_columns(record, columns)
    if columns.kind == "messages":
        return last_reply(column_value(record, columns, "messages"))
    role = "response" if columns.kind == "prompt" else "text"
    return str(column_value(record, columns, role))


def _pieces(tokenizer: Any, record: Record, columns: Columns) -> list[tuple[str, bool]]:
    """The text of an example in order: pieces, and whether each belongs to the response."""
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
    """The tokens of all pieces, with the tokenizer's leading special tokens and EOS."""
    if columns.kind == "messages":
        both = zip(pieces, encoded, strict=True)
        return [s for (_, flag), ids in both for s in _chat_segment(tokenizer, ids, flag)]
    prompt, response = encoded
    if response and eos and response[-1] != _eos_id(tokenizer):
        response = [*response, _eos_id(tokenizer)]
    return [(_leading_special(tokenizer) + prompt, False), (response, True)]


def _chat_segment(tokenizer: Any, ids: list[int], is_response: bool) -> list[Segment]:
    """Segments of one rendered piece; template text after a reply's end is not response."""
    end = _end_of_turn(tokenizer, ids) if is_response else len(ids)
    return [(ids[:end], is_response), (ids[end:], False)]


def _end_of_turn(tokenizer: Any, ids: list[int]) -> int:
    """End of a reply: after its last EOS, or after a special token that only white space follows.

    The second rule serves templates that end a turn with another token than EOS (<end_of_turn>).
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
    """Ids of each text; one call for all texts takes a quarter of the time of one call each."""
    nonempty = [text for text in texts if text]
    if not nonempty:
        return [[] for _ in texts]
    encoded = iter(tokenizer(nonempty, add_special_tokens=False, verbose=False)["input_ids"])
    return [list(next(encoded)) if text else [] for text in texts]


def _eos_id(tokenizer: Any) -> int:
    if tokenizer.eos_token_id is None:
        raise UsageError("tokenizer: has no EOS token; expected one; pass --no-eos")
    return int(tokenizer.eos_token_id)


@lru_cache(maxsize=4)
def _leading_special(tokenizer: Any) -> list[int]:
    """Ids that the tokenizer adds before a text: BOS, or nothing."""
    bare, full = _encode_all(tokenizer, ["a"])[0], list(tokenizer("a")["input_ids"])
    starts = [n for n in range(len(full)) if full[n : n + len(bare)] == bare]
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
