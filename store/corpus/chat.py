"""Conversations of a corpus, and the chat template that renders them.

The caller passes a transformers tokenizer, which renders its chat template.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from caskd.store.corpus.bounded_render import TemplateError, render_template
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
        given = parse_json(arguments or "{}")
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
        """Check the messages, and find the template.

        Raises:
            UsageError: no chat template, or a message without role and content.
        """
        check_messages(conversation.messages)
        self._tokenizer, self.options = tokenizer, options
        self.messages = [_without_nulls(message) for message in conversation.messages]
        self._given = dict(conversation.given)
        self._arguments = parse_json(options.arguments)
        self.template = template_text(tokenizer, options.template, self._given.get("tools"))
        self.messages = self._supported(self.messages)

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
                "supports: fix or remove that record, pass --on-bad-chat skip, or another "
                "--chat-template FILE"
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

    def try_render(self, messages: Sequence[Message], **options: Any) -> str | None:
        """The rendered messages; None if the template rejects them."""
        try:
            return self.render(messages, **options)
        except ChatRefusedError:
            return None


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
