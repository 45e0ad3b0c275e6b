"""Conversations of a corpus, and the chat template that renders them.

The caller passes a transformers tokenizer, which renders its chat template.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from caskd.store.corpus.bounded_render import TemplateError, render_template
from caskd.store.corpus.columns import Columns, Record, column_value, decide_columns
from caskd.store.errors import UsageError, reason
from caskd.store.io import parse_json

Message = Mapping[str, Any]
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


CHAT_FLAGS: Mapping[str, str] = MappingProxyType(
    {
        "template": "--chat-template",
        "arguments": "--template-arguments",
        "template_tokens": "--train-template-tokens",
    }
)
"""Flags that set a field of `ChatOptions` in every command that renders conversations."""


def given_chat_options(
    template_file: str | None = None,
    arguments: str | None = None,
    template_tokens: bool = False,
) -> dict[str, Any]:
    """Fields of `ChatOptions` that the values of `CHAT_FLAGS` set; the others are absent.

    Raises:
        UsageError: the file cannot be read, or the arguments are no JSON object.
    """
    given: dict[str, Any] = {"template_tokens": True} if template_tokens else {}
    if template_file is not None:
        try:
            given["template"] = Path(template_file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(
                f"--chat-template {template_file}: {reason(error)}; expected a readable text file "
                "with a Jinja template; pass another file"
            ) from error
    if arguments is not None:
        given["arguments"] = _arguments(arguments)
    return given


def _arguments(text: str) -> str:
    """Arguments of a chat template as canonical JSON."""
    try:
        given = parse_json(text)
    except ValueError:
        given = None
    if not isinstance(given, dict) or given.keys() & _OWN_ARGUMENTS:
        raise UsageError(
            f"--template-arguments {text}: expected a JSON object of arguments of the chat "
            f"template, none of {', '.join(sorted(_OWN_ARGUMENTS))}; pass for instance "
            "--template-arguments '{\"enable_thinking\": false}'"
        )
    return json.dumps(given, sort_keys=True)


def check_chat_flags(kind: str, given: Iterable[str]) -> None:
    """Refuse an option of conversations beside data without them.

    Args:
        kind: of the corpus.
        given: fields of `ChatOptions` that a flag sets.

    Raises:
        UsageError: names the first such flag.
    """
    flag = next((CHAT_FLAGS.get(name, "--chat-turns") for name in given), None)
    if kind != "messages" and flag is not None:
        raise UsageError(
            f"{flag}: the data has {kind} records, which no chat template renders; expected "
            f"messages; omit {flag}, or pass --messages-column NAME"
        )


@dataclass(frozen=True)
class Conversation:
    """What a record gives to the chat template."""

    messages: Sequence[Message]
    given: Mapping[str, Any] = field(default_factory=dict)
    """`tools` and `documents`, where the record has them."""


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
        "conversation: has no assistant turn; expected one as reference; remove that record"
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


class Chat:
    """One conversation with the template that renders it."""

    def __init__(
        self,
        tokenizer: Any,
        conversation: Conversation,
        options: ChatOptions,
    ) -> None:
        """Check the messages, and find the template, which the options or the tokenizer have.

        Raises:
            UsageError: a message without role and content, or no template to choose.
        """
        check_messages(conversation.messages)
        self._tokenizer, self.options = tokenizer, options
        self.messages = [_without_nulls(message) for message in conversation.messages]
        self._given = dict(conversation.given)
        self._arguments = parse_json(options.arguments)
        template = options.template
        tools = self._given.get("tools")
        self.template = _own_template(tokenizer, tools) if template is None else template
        self.messages = self._supported(self.messages)
        self._check_calls()

    def render(self, messages: Sequence[Message], **options: Any) -> str:
        """The rendered messages: those of `self.messages`, or changed copies of them.

        Raises:
            ChatRefusedError: the template rejects them.
        """
        options = {"chat_template": self.template, **self._given, **self._arguments, **options}
        try:
            return render_template(self._tokenizer, messages, options)
        except TemplateError as error:
            raise ChatRefusedError(
                f"the chat template rejects a conversation ({error}); expected one that it "
                "supports: fix or remove that record, or pass another --chat-template FILE"
            ) from error

    def _supported(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The messages, with text in place of contents that the template would print as values.

        A template without support of them prints a list of parts as Python, and null as `None`.
        """
        lists = [m["content"] for m in messages if isinstance(m.get("content"), list)]
        if lists:
            text = self.try_render(messages)
            if text is None or any(str(content) in text for content in lists):
                messages = [
                    {**m, "content": content_text(m)} if isinstance(m.get("content"), list) else m
                    for m in messages
                ]
        if any(m.get("content") is None for m in messages):
            empty = [{**m, "content": ""} if m.get("content") is None else m for m in messages]
            with_null, without = self.try_render(messages), self.try_render(empty)
            if with_null is None or (
                without is not None and with_null.count("None") > without.count("None")
            ):
                return empty
        return messages

    def _check_calls(self) -> None:
        """Refuse tool calls that the template leaves out: replies would lack them.

        Raises:
            ChatRefusedError: the conversation renders the same without them.
        """
        if not any(message.get("tool_calls") for message in self.messages):
            return
        without = [
            {**{k: v for k, v in m.items() if k != "tool_calls"}, "content": m.get("content") or ""}
            if m.get("tool_calls")
            else m
            for m in self.messages
        ]
        if self.render(self.messages) == self.try_render(without):
            raise ChatRefusedError(
                "the chat template leaves out the tool_calls of a conversation; expected one that "
                "writes them: pass --chat-template FILE, or remove that record"
            )

    def try_render(self, messages: Sequence[Message], **options: Any) -> str | None:
        """The rendered messages; None if the template rejects them."""
        try:
            return self.render(messages, **options)
        except ChatRefusedError:
            return None


def _own_template(tokenizer: Any, tools: Any) -> str:
    """The tokenizer's template: of several, the one for tools or the default."""
    try:
        return str(tokenizer.get_chat_template(tools=tools))
    except ValueError as error:
        names = ", ".join(map(ascii, tokenizer.chat_template or ()))
        raise UsageError(
            f"the tokenizer has the chat templates {names or 'none'}; expected one named "
            "'default': pass --chat-template FILE"
        ) from error


def _without_nulls(message: Message) -> dict[str, Any]:
    """A message without the empty columns that table files add to every message."""
    return {
        k: v
        for k, v in message.items()
        if k == "content" or not (v is None or (k == "tool_calls" and v == []))
    }


def reference_text(record: Record, columns: Columns) -> str:
    """The expected output: the response, the last assistant turn's content, or the text."""
    columns = decide_columns(record, columns)
    if columns.kind == "messages":
        return last_reply(column_value(record, columns, "messages"))
    role = "response" if columns.kind == "prompt" else "text"
    return str(column_value(record, columns, role))
