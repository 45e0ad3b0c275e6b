"""Locates the assistant's replies in a rendered conversation.

The template's `{% generation %}` marks delimit the replies if it has them; otherwise they are
located by renderings of prefixes, and of a mark in place of a reply's content.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from caskd.store.corpus.chat import (
    Chat,
    ChatOptions,
    ChatRefusedError,
    Conversation,
    Message,
    content_text,
)

Span = tuple[int, int]
"""Characters of a text, as start and stop."""
# Private-use characters, absent from real text.
_START, _END = "\ue000caskd-start\ue001", "\ue000caskd-end\ue001"
_OPEN_TAG = re.compile(r"(\{%-?\s*generation\s*)(-?)(%\})(\n?)")
_CLOSE_TAG = re.compile(r"(^[ \t]*)?(\{%)(-?)(\s*endgeneration\s*-?%\})", re.MULTILINE)


@dataclass(frozen=True)
class RenderedChat:
    """A rendered conversation.

    Attributes:
        text: the whole conversation.
        replies: the located replies in order, each with the end of its turn.
        num_context_turns: replies that are context: their prefix renders differently in the whole.
        lead: text of the last reply that the template writes before its content: white space.
    """

    text: str
    replies: list[Span]
    num_context_turns: int = 0
    lead: str = ""


def render_chat(
    tokenizer: Any, conversation: Conversation, options: ChatOptions, special: Sequence[str]
) -> RenderedChat:
    """Render a conversation and locate its replies.

    Args:
        tokenizer: with the chat template.
        conversation: messages, and what else the template is given.
        options: how to render.
        special: texts of the tokenizer's special tokens; the first one behind a reply ends its
            turn.

    Raises:
        UsageError: a message without role and content.
        ChatRefusedError: the template rejects the conversation, or the last reply has no place.
    """
    chat = Chat(tokenizer, conversation, options)
    located = _Replies(chat, special)
    replies = [n for n, m in enumerate(conversation.messages) if m["role"] == "assistant"]
    if not conversation.messages:
        return RenderedChat("", [])
    text = chat.render(chat.messages)
    if not replies:
        return RenderedChat(text, [])
    if _OPEN_TAG.search(chat.template):
        spans = located.marked_spans(text, replies)
        if spans is not None:
            return RenderedChat(text, spans)
    found = [located.earlier_span(text, turn) for turn in replies[:-1]]
    span, lead = located.last_span(text, replies[-1])
    spans = [earlier for earlier in found if earlier is not None]
    return RenderedChat(text, [*spans, span], len(found) - len(spans), lead)


class _Replies:
    """Locates the replies of one conversation."""

    def __init__(self, chat: Chat, special: Sequence[str]) -> None:
        self._chat = chat
        self._special_texts = tuple(special)
        self._special = re.compile("|".join(map(re.escape, special))) if special else None

    def marked_spans(self, full: str, replies: Sequence[int]) -> list[Span] | None:
        """Spans between the template's generation tags; None if they cannot be located.

        Each tag gets a printed mark beside it that trims the same white space as the tag
        (transformers renders with trim_blocks and lstrip_blocks). The spans are valid only if the
        rendering without the marks equals the unmarked rendering.
        """
        marked = _CLOSE_TAG.sub(_closed, _OPEN_TAG.sub(_opened, self._chat.template))
        rendered = self._chat.try_render(self._chat.messages, chat_template=marked)
        if rendered is None or rendered.replace(_START, "").replace(_END, "") != full:
            return None
        spans, position = [], 0
        for piece in re.split(f"({_START}.*?{_END})", rendered, flags=re.DOTALL):
            text = piece.replace(_START, "").replace(_END, "")
            if piece.startswith(_START) and text:
                spans.append((position, position + len(text)))
            position += len(text)
        contents = [content_text(self._chat.messages[turn]) for turn in replies]
        if len(spans) != len(contents):
            contents = [""] * len(spans)
        trimmed = (self._trim(full, *both) for both in zip(spans, contents, strict=True))
        return list(trimmed) or None

    def _trim(self, full: str, span: Span, content: str) -> Span:
        """The span without white space behind the token that ends the turn."""
        start, stop = span
        text = full[start:stop].rstrip()
        quoted = bool(content.strip()) and text.endswith(content.rstrip())
        if not quoted and text.endswith(self._special_texts):
            return start, start + len(text)
        return span

    def earlier_span(self, full: str, turn: int) -> Span | None:
        """Span of a reply before the last; None if its prefix renders differently in the whole."""
        prefix = self._chat.messages[: turn + 1]
        through = self._chat.try_render(prefix)
        before = self._chat.try_render(prefix[:-1], add_generation_prompt=True)
        if through is None:
            return None
        found = self._locate(through, before, prefix, [])
        if found is None or not full.startswith(through[: found[0][1]]):
            return None
        return found[0]

    def last_span(self, full: str, turn: int) -> tuple[Span, str]:
        """Span of the last reply, and the white space that the template writes at its start.

        Raises:
            ChatRefusedError: the reply has no place in the text.
        """
        prefix = self._chat.messages[: turn + 1]
        before = self._chat.try_render(prefix[:-1], add_generation_prompt=True)
        after = self._chat.messages[turn + 1 :]
        found = self._locate(full, before, prefix, after)
        if found is None and after:
            span = self.earlier_span(full, turn)
            found = None if span is None else (span, "")
        if found is None:
            raise ChatRefusedError(
                f"the chat template does not show where message {turn + 1}, the last reply, "
                "starts and ends; expected a template with {% generation %} marks, or one that "
                "writes each reply whole: pass --chat-template FILE, or remove that record"
            )
        return found

    def _locate(
        self, text: str, before: str | None, prefix: Sequence[Message], after: Sequence[Message]
    ) -> tuple[Span, str] | None:
        """Span of the reply that ends `prefix`, from a rendering with a mark as its content."""
        mark = next(chr(code) for code in range(0xE000, 0xF8FF) if chr(code) not in text)
        # Without tool calls and reasoning, which the template would write beside the mark.
        message = {k: v for k, v in prefix[-1].items() if k in ("role", "name")}
        marked = [*prefix[:-1], {**message, "content": mark}]
        rendered = self._chat.try_render([*marked, *after])
        if rendered is None or rendered.count(mark) != 1:
            return None
        head, tail = rendered.split(mark)
        header = len(head) if before is None else _common(before, head)
        if text.startswith(head):
            written = head[header:]
            lead = written if written.isspace() or self._chat.options.template_tokens else ""
            start = len(head) - len(lead)
        elif before is not None and head.startswith(before) and text.startswith(before):
            start, lead = header, ""
        else:
            return None
        if not text.endswith(tail) or len(text) - len(tail) < start:
            # Templates may end tool calls in another way than text.
            calls = not after and bool(prefix[-1].get("tool_calls"))
            return ((start, self._last_end(text, start)), lead) if calls else None
        closing = tail if not after else self._closing(marked, mark, tail)
        if closing is None:
            return None
        stop = len(text) - len(tail) + self._turn_end(closing)
        return (start, stop), lead

    def _closing(self, marked: Sequence[Message], mark: str, tail: str) -> str | None:
        """What the template writes behind a reply with further messages behind it."""
        alone = self._chat.try_render(marked)
        if alone is None:
            return None
        ending = alone.rpartition(mark)[2]
        match = None if self._special is None else self._special.search(tail)
        if match is not None and match.re.search(ending) is not None:
            return tail[: match.end()]
        return tail[: _common(ending, tail)]

    def _last_end(self, text: str, start: int) -> int:
        """End of the special token with which the text ends, or of the text."""
        stop = len(text.rstrip())
        return stop if stop > start and text[:stop].endswith(self._special_texts) else len(text)

    def _turn_end(self, closing: str) -> int:
        """Length of the closing text up to the first special token, or all of it."""
        match = None if self._special is None else self._special.search(closing)
        return len(closing) if match is None else match.end()


def _common(a: str, b: str) -> int:
    """Length of the common prefix."""
    if a.startswith(b) or b.startswith(a):
        return min(len(a), len(b))
    return next(n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)


def _opened(tag: re.Match[str]) -> str:
    head, dash, close, _newline = tag.groups()
    return f"{head}{dash}{close}{{{{ '{_START}' {dash}}}}}"


def _closed(tag: re.Match[str]) -> str:
    _indent, head, dash, close = tag.groups()
    return f"{{{{{dash} '{_END}' }}}}{head}{dash}{close}"


def without_end(
    text: str, replies: Sequence[tuple[int, int]], content: str
) -> list[tuple[int, int]]:
    """The replies, the last one up to the end of its content, before what the template adds.

    Raises:
        ChatRefusedError: the template changes the content.
    """
    if not replies:
        return []
    (start, stop), content = replies[-1], content.strip()
    place = text.rfind(content, start, stop)
    if not content or place < 0:
        raise ChatRefusedError(
            "the chat template changes the text of an unfinished reply, whose end is then unknown; "
            "expected it unchanged: remove that record, or pass --on-unfinished skip"
        )
    return [*replies[:-1], (start, place + len(content))]
