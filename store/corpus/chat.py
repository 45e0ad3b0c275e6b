"""Renders a conversation and locates the assistant's replies in the text.

The caller passes a transformers tokenizer, which renders its chat template.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from caskd.store.errors import UsageError, reason

Message = Mapping[str, Any]
Span = tuple[int, int]
"""Characters of a text, as start and stop."""
# Private-use characters, absent from real text.
_START, _END = "\ue000caskd-start\ue001", "\ue000caskd-end\ue001"
_OWN_ARGUMENTS = frozenset(
    {
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
        "conversation",
        "documents",
        "messages",
        "tokenize",
        "tools",
    }
)
_OPEN_TAG = re.compile(r"(\{%-?\s*generation\s*)(-?)(%\})(\n?)")
_CLOSE_TAG = re.compile(r"(^[ \t]*)?(\{%)(-?)(\s*endgeneration\s*-?%\})", re.MULTILINE)


class ChatRefusedError(UsageError):
    """The chat template cannot place a conversation."""


@dataclass(frozen=True, kw_only=True)
class ChatOptions:
    """How conversations are rendered, and which tokens of them are rows."""

    template: str | None = None
    """Text of a chat template instead of the tokenizer's own."""
    arguments: str = "{}"
    """Arguments of the template, a JSON object."""
    turns: Literal["all", "last"] = "all"
    """Replies whose tokens are rows."""
    template_tokens: bool = False
    """Whether text that the template writes at the start of a reply is part of the reply."""


def read_chat_options(
    template_file: str | None,
    arguments: str | None,
    turns: Literal["all", "last"] = "all",
    template_tokens: bool = False,
) -> ChatOptions:
    """Options from the values of the flags --chat-template and --template-arguments.

    Raises:
        UsageError: the file cannot be read, or the arguments are no JSON object.
    """
    template = None
    if template_file is not None:
        try:
            template = Path(template_file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(
                f"--chat-template {template_file}: {reason(error)}; expected a readable text file "
                "with a Jinja template; pass another file"
            ) from error
    try:
        given = json.loads(arguments or "{}")
    except ValueError:
        given = None
    if not isinstance(given, dict) or given.keys() & _OWN_ARGUMENTS:
        raise UsageError(
            f"--template-arguments {arguments}: expected a JSON object of arguments of the chat "
            f"template, none of {', '.join(sorted(_OWN_ARGUMENTS))}; pass for instance "
            "--template-arguments '{\"enable_thinking\": false}'"
        )
    text = json.dumps(given, sort_keys=True)
    return ChatOptions(
        template=template, arguments=text, turns=turns, template_tokens=template_tokens
    )


@dataclass(frozen=True)
class Conversation:
    """What a record gives to the chat template."""

    messages: Sequence[Message]
    given: Mapping[str, Any] = field(default_factory=dict)
    """`tools` and `documents`, where the record has them."""


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

    The template's `{% generation %}` marks delimit the replies if it has them; otherwise they are
    located by renderings of prefixes, and of a mark in place of a reply's content.

    Args:
        tokenizer: with the chat template.
        conversation: messages, and what else the template is given.
        options: how to render.
        special: texts of the tokenizer's special tokens; the first one behind a reply ends its
            turn.

    Raises:
        UsageError: no chat template, or a message without role and content.
        ChatRefusedError: the template rejects the conversation, or the last reply has no place.
    """
    check_messages(conversation.messages)
    chat = _Chat(tokenizer, conversation, options, special)
    replies = [n for n, m in enumerate(conversation.messages) if m["role"] == "assistant"]
    if not conversation.messages:
        return RenderedChat("", [])
    text = chat.render(chat.messages)
    if not replies:
        return RenderedChat(text, [])
    if _OPEN_TAG.search(chat.template):
        spans = chat.marked_spans(text, replies)
        if spans is not None:
            return RenderedChat(text, spans)
    found = [chat.earlier_span(text, turn) for turn in replies[:-1]]
    span, lead = chat.last_span(text, replies[-1])
    spans = [earlier for earlier in found if earlier is not None]
    return RenderedChat(text, [*spans, span], len(found) - len(spans), lead)


def last_reply(messages: Sequence[Message]) -> str:
    """Content of the last assistant turn.

    Raises:
        UsageError: the conversation has no assistant turn.
    """
    check_messages(messages)
    for message in reversed(messages):
        if message["role"] == "assistant":
            return content_text(message)
    raise UsageError(
        "a conversation has no assistant turn; expected one as reference: remove that record"
    )


def content_text(message: Message) -> str:
    """Text of a message: its content, or the text parts of it; "" if it has none."""
    content = message.get("content")
    if isinstance(content, list):
        return "".join(str(part["text"]) for part in content)
    return "" if content is None else str(content)


def check_messages(messages: Sequence[Message]) -> None:
    """Check roles and contents.

    Raises:
        UsageError: a message has no role, or no text, list of text parts or tool calls.
    """
    for message in messages:
        given = message if isinstance(message, Mapping) else {}
        if not (isinstance(given.get("role"), str) and _has_content(given)):
            raise UsageError(
                f"a message is {str(message)[:80]!r}; expected an object with text in 'role' and "
                "'content' (text, a list of text parts, or null beside 'tool_calls'): fix that "
                "record, or pass --messages-column NAME of another column"
            )


def _has_content(message: Message) -> bool:
    content = message.get("content")
    if isinstance(content, list):
        return all(
            isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in content
        )
    return isinstance(content, str) or (content is None and bool(message.get("tool_calls")))


class _Chat:
    """One conversation with the template that renders it."""

    def __init__(
        self,
        tokenizer: Any,
        conversation: Conversation,
        options: ChatOptions,
        special: Sequence[str],
    ) -> None:
        self._tokenizer, self._options = tokenizer, options
        self.messages = [_without_nulls(message) for message in conversation.messages]
        self._given = dict(conversation.given)
        self._arguments = json.loads(options.arguments)
        self._special = re.compile("|".join(map(re.escape, special))) if special else None
        self.template = template_text(tokenizer, options.template, self._given.get("tools"))
        self.messages = self._supported(self.messages)

    def render(self, messages: Sequence[Message], **options: Any) -> str:
        """The rendered messages.

        Raises:
            ChatRefusedError: the template rejects them.
        """
        from jinja2 import TemplateError

        options = {"chat_template": self.template, **self._given, **self._arguments, **options}
        clean = [_without_nulls(message) for message in messages]
        try:
            # In a list, because transformers looks at the first message.
            return str(self._tokenizer.apply_chat_template([clean], tokenize=False, **options)[0])
        except (TemplateError, TypeError, ValueError, AttributeError, LookupError) as error:
            raise ChatRefusedError(
                f"the chat template rejects a conversation ({reason(error)}); expected one that it "
                "supports: fix or remove that record, pass --on-bad-chat skip, or another "
                "--chat-template FILE"
            ) from error

    def _supported(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The messages, with text in place of contents that the template would print as values.

        A template without support of them prints a list of parts as Python, and null as `None`.
        """
        lists = [m["content"] for m in messages if isinstance(m.get("content"), list)]
        if lists:
            text = self._try_render(messages)
            if text is None or any(str(content) in text for content in lists):
                messages = [
                    {**m, "content": content_text(m)} if isinstance(m.get("content"), list) else m
                    for m in messages
                ]
        if any(m.get("content") is None for m in messages):
            empty = [{**m, "content": ""} if m.get("content") is None else m for m in messages]
            with_null, without = self._try_render(messages), self._try_render(empty)
            if with_null is None or (
                without is not None and with_null.count("None") > without.count("None")
            ):
                return empty
        return messages

    def _try_render(self, messages: Sequence[Message], **options: Any) -> str | None:
        try:
            return self.render(messages, **options)
        except ChatRefusedError:
            return None

    def marked_spans(self, full: str, replies: Sequence[int]) -> list[Span] | None:
        """Spans between the template's generation tags; None if they cannot be located.

        Each tag gets a printed mark beside it that trims the same white space as the tag
        (transformers renders with trim_blocks and lstrip_blocks). The spans are valid only if the
        rendering without the marks equals the unmarked rendering.
        """
        marked = _CLOSE_TAG.sub(_closed, _OPEN_TAG.sub(_opened, self.template))
        rendered = self._try_render(self.messages, chat_template=marked)
        if rendered is None or rendered.replace(_START, "").replace(_END, "") != full:
            return None
        spans, position = [], 0
        for piece in re.split(f"({_START}.*?{_END})", rendered, flags=re.DOTALL):
            text = piece.replace(_START, "").replace(_END, "")
            if piece.startswith(_START) and text:
                spans.append((position, position + len(text)))
            position += len(text)
        contents = [content_text(self.messages[turn]) for turn in replies]
        if len(spans) != len(contents):
            contents = [""] * len(spans)
        trimmed = (self._trim(full, *both) for both in zip(spans, contents, strict=True))
        return list(trimmed) or None

    def _trim(self, full: str, span: Span, content: str) -> Span:
        """The span without white space behind the token that ends the turn."""
        start, stop = span
        text = full[start:stop].rstrip()
        quoted = bool(content.strip()) and text.endswith(content.rstrip())
        ends = self._special is not None and not quoted
        if ends and any(text.endswith(m.group()) for m in self._special.finditer(text)):
            return start, start + len(text)
        return span

    def earlier_span(self, full: str, turn: int) -> Span | None:
        """Span of a reply before the last; None if its prefix renders differently in the whole."""
        prefix = self.messages[: turn + 1]
        through = self._try_render(prefix)
        before = self._try_render(prefix[:-1], add_generation_prompt=True)
        if through is None or before is None:
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
        prefix = self.messages[: turn + 1]
        before = self._try_render(prefix[:-1], add_generation_prompt=True)
        found = self._locate(full, before, prefix, self.messages[turn + 1 :])
        if found is None:
            raise ChatRefusedError(
                f"the chat template does not show where message {turn + 1}, the last reply, "
                "starts and ends; expected a template with {% generation %} marks, or one that "
                "writes each reply whole: pass --chat-template FILE, or --on-bad-chat skip"
            )
        return found

    def _locate(
        self, text: str, before: str | None, prefix: list[Message], after: list[Message]
    ) -> tuple[Span, str] | None:
        """Span of the reply that ends `prefix`, from a rendering with a mark as its content."""
        mark = next(chr(code) for code in range(0xE000, 0xF8FF) if chr(code) not in text)
        # Without tool calls and reasoning, which the template would write beside the mark.
        message = {k: v for k, v in prefix[-1].items() if k in ("role", "name")}
        marked = [*prefix[:-1], {**message, "content": mark}]
        rendered = self._try_render([*marked, *after])
        if rendered is None or rendered.count(mark) != 1:
            return None
        head, tail = rendered.split(mark)
        header = len(head) if before is None else _common(before, head)
        if text.startswith(head):
            written = head[header:]
            lead = written if written.isspace() or self._options.template_tokens else ""
            start = len(head) - len(lead)
        elif before is not None and head.startswith(before) and text.startswith(before):
            start, lead = header, ""
        else:
            return None
        if not text.endswith(tail) or len(text) - len(tail) < start:
            return None
        closing = tail if not after else self._closing(marked, mark, tail)
        if closing is None:
            return None
        stop = len(text) - len(tail) + self._turn_end(closing)
        return (start, stop), lead

    def _closing(self, marked: list[Message], mark: str, tail: str) -> str | None:
        """What the template writes behind a reply with further messages behind it."""
        if self._special is not None and (match := self._special.search(tail)):
            alone = self._try_render(marked)
            ending = None if alone is None else self._special.search(alone.rpartition(mark)[2])
            if ending is not None:
                return tail[: match.end()]
        alone = self._try_render(marked)
        return None if alone is None else tail[: _common(alone.rpartition(mark)[2], tail)]

    def _turn_end(self, closing: str) -> int:
        """Length of the closing text up to the first special token, or all of it."""
        match = None if self._special is None else self._special.search(closing)
        return len(closing) if match is None else match.end()


def template_text(tokenizer: Any, override: str | None = None, tools: Any = None) -> str:
    """Text of the chat template.

    Raises:
        UsageError: the tokenizer has none.
    """
    if override is not None:
        return override
    if not tokenizer.chat_template:
        raise UsageError(
            "the data has messages but the tokenizer has no chat template; expected a model with "
            "one: pass --chat-template FILE, a chat model to --teacher, or data with prompt and "
            "response columns"
        )
    return str(tokenizer.get_chat_template(tools=tools))


def _without_nulls(message: Message) -> dict[str, Any]:
    """A message without the empty columns that table files add to every message."""
    return {k: v for k, v in message.items() if v is not None or k == "content"}


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
