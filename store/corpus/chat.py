"""Splits a rendered conversation into the assistant's replies and the rest.

The caller passes a transformers tokenizer, which renders its chat template.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from caskd.store.errors import UsageError, reason

Message = Mapping[str, Any]
# Private-use characters, absent from real text.
_START, _END = "\ue000caskd-start\ue001", "\ue000caskd-end\ue001"
_OPEN_TAG = re.compile(r"(\{%-?\s*generation\s*)(-?)(%\})(\n?)")
_CLOSE_TAG = re.compile(r"(^[ \t]*)?(\{%)(-?)(\s*endgeneration\s*-?%\})", re.MULTILINE)


def conversation_segments(tokenizer: Any, messages: Sequence[Message]) -> list[tuple[str, bool]]:
    """The rendered conversation in order as (text, whether it is an assistant's reply).

    The template's `{% generation %}` marks delimit the replies if it has them; otherwise the
    differences between rendered prefixes, each with the generation prompt.

    Raises:
        UsageError: no chat template, a message without role and content, or a template without
            marks that is not prefix-stable.
    """
    _check_messages(messages)
    template = _template(tokenizer)
    full = _render(tokenizer, messages)
    spans = None
    if _OPEN_TAG.search(template):
        spans = _marked_spans(tokenizer, messages, template, full)
    if spans is None:
        spans = _prefix_spans(tokenizer, messages, full)
    cuts = [0, *(edge for span in spans for edge in span), len(full)]
    return [(full[a:b], n % 2 == 1) for n, (a, b) in enumerate(pairwise(cuts)) if a < b]


def last_reply(messages: Sequence[Message]) -> str:
    """Content of the last assistant turn.

    Raises:
        UsageError: the conversation has no assistant turn.
    """
    _check_messages(messages)
    for message in reversed(messages):
        if message["role"] == "assistant":
            return str(message["content"])
    raise UsageError(
        "conversation: has no assistant turn; expected one as reference; remove that record"
    )


def _check_messages(messages: Sequence[Message]) -> None:
    for message in messages:
        given = message if isinstance(message, Mapping) else {}
        if not (isinstance(given.get("role"), str) and isinstance(given.get("content"), str)):
            raise UsageError(
                f"message {str(message)[:80]!r}: expected an object with text in 'role' and "
                "'content'; fix that record, or pass --messages-column NAME of another column"
            )


def _template(tokenizer: Any) -> str:
    if not tokenizer.chat_template:
        raise UsageError(
            "--data: has messages, but the tokenizer has no chat template; expected a teacher with "
            "one; pass a chat model to --teacher, or data with prompt and response columns"
        )
    return str(tokenizer.get_chat_template())


def _render(tokenizer: Any, messages: Sequence[Message], **options: Any) -> str:
    if not messages:
        return ""
    from jinja2 import TemplateError

    try:
        return str(tokenizer.apply_chat_template(list(messages), tokenize=False, **options))
    except TemplateError as error:  # such as roles that the template does not support
        raise UsageError(
            f"conversation: the chat template rejects it ({reason(error)}); expected one that it "
            "supports; fix or remove that record, or pass a --teacher with another template"
        ) from error


def _marked_spans(
    tokenizer: Any, messages: Sequence[Message], template: str, full: str
) -> list[tuple[int, int]] | None:
    """Spans between the template's generation tags; None if they cannot be located.

    Each tag gets a printed mark beside it that trims the same white space as the tag (transformers
    renders with trim_blocks and lstrip_blocks). The spans are valid only if the rendering without
    the marks equals the unmarked rendering.
    """

    def opened(tag: re.Match[str]) -> str:
        head, dash, close, _newline = tag.groups()
        return f"{head}{dash}{close}{{{{ '{_START}' {dash}}}}}"

    def closed(tag: re.Match[str]) -> str:
        _indent, head, dash, close = tag.groups()
        return f"{{{{{dash} '{_END}' }}}}{head}{dash}{close}"

    marked = _CLOSE_TAG.sub(closed, _OPEN_TAG.sub(opened, template))
    rendered = _render(tokenizer, messages, chat_template=marked)
    spans, position = [], 0
    for piece in re.split(f"({_START}.*?{_END})", rendered, flags=re.DOTALL):
        text = piece.replace(_START, "").replace(_END, "")
        if piece.startswith(_START):
            spans.append((position, position + len(text)))
        position += len(text)
    same = rendered.replace(_START, "").replace(_END, "") == full
    return spans if same else None


def _prefix_spans(tokenizer: Any, messages: Sequence[Message], full: str) -> list[tuple[int, int]]:
    """Spans of the replies, from the renderings of all prefixes that end in one."""
    spans = []
    for turn, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = _render(tokenizer, messages[:turn], add_generation_prompt=True)
        through = _render(tokenizer, messages[: turn + 1])
        if not before or not through.startswith(before) or not full.startswith(through):
            raise UsageError(
                f"chat template: not prefix-stable at message {turn + 1}: the first {turn + 1} "
                "messages render differently alone, so the reply cannot be separated from its "
                "prompt; expected a template with {% generation %} marks, or conversations of one "
                "assistant turn; pass another --teacher, or shorten the conversations"
            )
        spans.append((len(before), len(through)))
    return spans
