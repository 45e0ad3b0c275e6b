"""Tokenises records: the teacher's input during capture, and a model's prompt in prediction.

Legend: T tokens of one example, V vocabulary. The caller passes a transformers tokenizer.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from caskd.store.corpus.alignment import num_rows
from caskd.store.corpus.chat import ChatOptions, ChatRefusedError, Conversation, last_reply
from caskd.store.corpus.columns import (
    Columns,
    Record,
    column_value,
    decide_columns,
    is_unfinished,
    record_task,
    template_values,
)
from caskd.store.corpus.reply_spans import RenderedChat, render_chat, without_end
from caskd.store.corpus.text_tokens import TextTokens, text_tokens
from caskd.store.errors import UsageError

TEXT_RULE = 2
"""Rule by which text becomes tokens; stores without a rule follow rule 1."""
OnLong = Literal["error", "truncate", "skip"]


@dataclass(frozen=True, kw_only=True)
class TextOptions:
    """Options of tokenisation; every field is part of a store's identity."""

    eos: bool = True
    max_length: int
    on_long: OnLong = "error"
    """Treatment of an example longer than `max_length`; "error" marks it too_long."""
    vocab_size: int | None = None
    """Size of the teacher's vocabulary; an example with a larger id gets no rows."""
    chat: ChatOptions = field(default_factory=ChatOptions)
    """How conversations are rendered."""
    keep_unfinished: bool = False
    """Whether an unfinished answer has rows, without an end; else it is left out."""


@dataclass(frozen=True)
class TokenizedExample:
    """One example: `token_ids` and `is_response` [T]; examples without rows have T = 0.

    `status` is ok, truncated, too_long, empty, out_of_vocabulary, duplicate, chat_refused or
    unfinished; the last six have no rows. `full_length` is the number of tokens before truncation
    or rejection.
    """

    token_ids: npt.NDArray[np.uint32]
    is_response: npt.NDArray[np.uint8]
    status: str
    source_index: int
    task: str
    full_length: int = 0
    own_border: bool = False
    """The given part keeps its own tokenisation, where the whole text merges across its border."""
    rendered_bos: bool = False
    """The text came rendered with BOS, so that no second one was added."""
    num_context_turns: int = 0
    """Replies that are context, because their prefix renders differently in the whole."""
    kept_unfinished: bool = False
    """The answer was cut when it was made, and has no end here either."""
    reason: str = ""
    """Why the chat template cannot place the conversation."""


@dataclass(frozen=True)
class _Text:
    """A record's text, and its replies in it."""

    text: str
    replies: Sequence[tuple[int, int]]
    chat: RenderedChat | None = None
    unfinished: bool = False
    """The last reply has no end."""

    @property
    def borders(self) -> list[int]:
        """Starts and ends of the replies, in order."""
        return sorted({edge for span in self.replies for edge in span})


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
            `options.eos` needs, or its bytes do not reproduce a text. The message has the record's
            index.
    """
    codec = text_tokens(tokenizer)
    texts: list[_Text | ChatRefusedError | None] = []  # None: left out
    for index, record in enumerate(records, start=first_index):
        with _name_record(index):
            decided = decide_columns(record, columns)
            if is_unfinished(record) and not options.keep_unfinished:
                texts.append(None)
                continue
            try:
                texts.append(_text(tokenizer, record, decided, options.chat))
            except ChatRefusedError as refused:
                texts.append(refused)
    codec.prime(part for text in texts if isinstance(text, _Text) for part in _parts(codec, text))
    examples = []
    for index, (record, text) in enumerate(zip(records, texts, strict=True), start=first_index):
        task = record_task(record, columns)
        none = np.zeros(0, np.uint32), np.zeros(0, np.uint8)
        if text is None:
            examples.append(TokenizedExample(*none, "unfinished", index, task))
        elif isinstance(text, ChatRefusedError):
            examples.append(TokenizedExample(*none, "chat_refused", index, task, reason=str(text)))
        else:
            examples.append(_example(tokenizer, codec, text, options, (index, task)))
    return examples


def _text(tokenizer: Any, record: Record, columns: Columns, chat: ChatOptions) -> _Text:
    """Text of an example and its replies."""
    if columns.kind == "messages":
        messages = column_value(record, columns, "messages")
        conversation = Conversation(messages, template_values(record, columns))
        special = text_tokens(tokenizer).special
        rendered = render_chat(tokenizer, conversation, chat, special)
        if not is_unfinished(record):
            return _Text(rendered.text, rendered.replies, rendered)
        replies = without_end(rendered.text, rendered.replies, last_reply(messages))
        return _Text(rendered.text, replies, rendered, unfinished=True)
    prompt = column_value(record, columns, "prompt") if columns.kind == "prompt" else ""
    response = column_value(record, columns, "response" if columns.kind == "prompt" else "text")
    spans = [(len(prompt), len(prompt) + len(response))]
    return _Text(prompt + response, spans, unfinished=is_unfinished(record))


def _parts(codec: TextTokens, text: _Text) -> list[str]:
    if text.chat is not None:
        return codec.texts_of(text.text, text.borders) if text.replies else []
    return [text.text, text.text[: text.replies[0][0]]]


def _example(
    tokenizer: Any, codec: TextTokens, text: _Text, options: TextOptions, where: tuple[int, str]
) -> TokenizedExample:
    if text.chat is not None:
        example = _chat_example(codec, text, options, where)
    else:
        example = _plain_example(tokenizer, codec, text, options, where)
    if example.status == "out_of_vocabulary":
        return replace(
            example, token_ids=example.token_ids[:0], is_response=example.is_response[:0]
        )
    status = _status(example.token_ids, example.is_response, options)
    last = len(example.token_ids)
    length = {"ok": last, "truncated": options.max_length}.get(status, 0)
    return replace(
        example,
        token_ids=example.token_ids[:length],
        is_response=example.is_response[:length],
        status=status,
        full_length=last,
        kept_unfinished=text.unfinished,
    )


def _chat_example(
    codec: TextTokens, text: _Text, options: TextOptions, where: tuple[int, str]
) -> TokenizedExample:
    assert text.chat is not None
    ids: list[int] = []
    mask = np.zeros(0, np.uint8)
    own, exact = False, True
    if text.replies:
        found = codec.cut(text.text, text.borders)
        own, exact = found.own, found.exact
        ids = found.ids[: found.cuts[-1]]  # no row depends on what follows the last reply
        cut_of = dict(zip(text.borders, found.cuts, strict=True))
        mask = np.zeros(len(ids), np.uint8)
        for start, stop in text.replies if options.chat.turns == "all" else text.replies[-1:]:
            mask[cut_of[start] : cut_of[stop]] = 1
    rows = [id_ for id_, flag in zip(ids, mask, strict=True) if flag]
    bad = not exact or codec.has_unknown(rows)
    return TokenizedExample(
        np.array(ids, np.uint32),
        mask,
        "out_of_vocabulary" if bad else "ok",
        *where,
        full_length=len(ids),
        own_border=own,
        num_context_turns=text.chat.num_context_turns,
    )


def _plain_example(
    tokenizer: Any, codec: TextTokens, text: _Text, options: TextOptions, where: tuple[int, str]
) -> TokenizedExample:
    border = text.replies[0][0]
    whole, prompt = codec.encode(text.text), codec.encode(text.text[:border])
    response, own = whole[len(prompt) :], False
    if whole[: len(prompt)] != prompt:
        response, own = codec.continuation(text.text[border:]), True
    exact = codec.reproduces(text.text, prompt + response, [(border, len(prompt))])
    bad = not exact or codec.has_unknown(response)
    if response and options.eos and not text.unfinished and response[-1] != _eos_id(tokenizer):
        response = [*response, _eos_id(tokenizer)]
    before, rendered = _with_leading(codec, prompt, response)
    ids = [*before, *response]
    mask = np.zeros(len(ids), np.uint8)
    mask[len(before) :] = 1
    if not response:
        ids, mask = [], mask[:0]
    return TokenizedExample(
        np.array(ids, np.uint32),
        mask,
        "out_of_vocabulary" if bad else "ok",
        *where,
        full_length=len(ids),
        own_border=own,
        rendered_bos=rendered,
    )


def _with_leading(
    codec: TextTokens, prompt: list[int], response: list[int]
) -> tuple[list[int], bool]:
    """The prompt behind the tokenizer's leading tokens, and whether it came with them."""
    leading = codec.leading
    if leading and [*prompt, *response][: len(leading)] == leading:
        return prompt, True
    return [*leading, *prompt], False


@contextmanager
def _name_record(index: int) -> Iterator[None]:
    """Prefix errors with the record's index."""
    try:
        yield
    except ChatRefusedError:
        raise
    except UsageError as error:
        raise UsageError(f"record {index}: {error}") from error


def prompt_ids(
    tokenizer: Any, record: Record, columns: Columns, chat: ChatOptions | None = None
) -> list[int]:
    """The prompt's tokens, exactly as capture puts them before the (last) response.

    For messages: all turns before the last assistant turn, with the generation prompt.

    Raises:
        UsageError: a column is missing, or the chat template cannot place the conversation.
    """
    codec = text_tokens(tokenizer)
    columns = decide_columns(record, columns)
    text = _text(tokenizer, record, columns, chat or ChatOptions())
    if text.chat is None:
        border = text.replies[0][0]
        prompt = codec.encode(text.text[:border])
        response = [] if prompt else codec.encode(text.text)
        return _with_leading(codec, prompt, response)[0]
    if not text.replies:
        return codec.encode(text.text)
    found = codec.cut(text.text, text.borders)
    return found.ids[: found.cuts[text.borders.index(text.replies[-1][0])]]


def conversation_ids(
    tokenizer: Any, record: Record, columns: Columns, chat: ChatOptions | None = None
) -> list[int]:
    """Tokens of a whole conversation as its chat template renders it, to the last character.

    Raises:
        UsageError: the record has no messages, or the chat template cannot place them.
    """
    columns = decide_columns(record, columns)
    text = _text(tokenizer, record, columns, chat or ChatOptions())
    if text.chat is None:
        raise UsageError("no column 'messages'; expected a conversation; check the record")
    return text_tokens(tokenizer).encode(text.text)


def rendered_bos(tokenizer: Any, record: Record, columns: Columns) -> bool:
    """Whether a record's prompt came rendered with BOS, so that no second one is added."""
    if columns.kind != "prompt":
        return False
    codec = text_tokens(tokenizer)
    return _with_leading(codec, codec.encode(column_value(record, columns, "prompt")), [])[1]


def answer_ids(
    tokenizer: Any,
    record: Record,
    columns: Columns,
    answer: str,
    chat: ChatOptions | None = None,
) -> list[int]:
    """Tokens of another answer in place of the (last) response, as a model would write it."""
    codec = text_tokens(tokenizer)
    columns = decide_columns(record, columns)
    text = _text(tokenizer, record, columns, chat or ChatOptions())
    given, lead = "", "" if text.chat is None else text.chat.lead
    if text.replies:
        given = text.text[: text.replies[-1][0]]
    found = codec.cut(given + lead + answer, [len(given)])
    return found.ids[found.cuts[0] :]


def _eos_id(tokenizer: Any) -> int:
    if tokenizer.eos_token_id is None:
        raise UsageError("tokenizer: has no EOS token; expected one; pass --no-eos")
    return int(tokenizer.eos_token_id)


def _status(ids: npt.NDArray[np.uint32], mask: npt.NDArray[np.uint8], options: TextOptions) -> str:
    if num_rows(mask) == 0:
        return "empty"
    if options.vocab_size is not None and int(ids.max()) >= options.vocab_size:
        return "out_of_vocabulary"
    if len(ids) <= options.max_length:
        return "ok"
    fits = options.on_long == "truncate" and num_rows(mask[: options.max_length]) > 0
    return "truncated" if fits else "too_long"
