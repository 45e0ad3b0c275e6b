"""The text that a model was trained on: `caskd_text.json` in its folder, and flags beside it.

Whatever asks a model with conversations calls `conversation_options`, so that it is asked as it was
trained.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from caskd.store.corpus import TEXT_RULE, ChatOptions
from caskd.store.errors import IdentityError, UsageError, reason
from caskd.store.io import escape_control, read_json_object, value_text

TEXT_FILE = "caskd_text.json"


@dataclass(frozen=True, kw_only=True)
class ModelText:
    """How the text that a model was trained on became tokens. The template is its tokenizer's.

    Attributes:
        rule: number of the text rule.
        template_arguments: with which the chat template was rendered.
        chat_turns: which assistant turns were responses; None without conversations, and for
            stores that do not record it.
        template_tokens: whether text that the template writes at the start of a reply was trained.
    """

    rule: int = 1
    template_arguments: Mapping[str, Any] | None = None
    chat_turns: str | None = None
    template_tokens: bool = False

    def to_bytes(self) -> bytes:
        """Content of `TEXT_FILE`."""
        values = {**asdict(self), "template_arguments": self.template_arguments or {}}
        return json.dumps(values, indent=1, sort_keys=True).encode()


def read_model_text(source: str | Path, flag: str) -> ModelText | None:
    """What the file beside a model records; None for a model without one.

    Args:
        source: a folder or a hub id.
        flag: the option that named it, for errors.

    Raises:
        UsageError: the file cannot be read or has other content.
    """
    from transformers.utils import cached_file

    found = cached_file(
        source,
        TEXT_FILE,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if found is None:
        return None
    try:
        values = read_json_object(Path(found))
        text = ModelText(
            rule=values["rule"],
            template_arguments=values["template_arguments"],
            chat_turns=values["chat_turns"],
            template_tokens=values.get("template_tokens", False),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _unreadable(source, flag, reason(error)) from error
    if not _is_valid(text):
        raise _unreadable(source, flag, "a field has another type")
    return text


def _is_valid(text: ModelText) -> bool:
    return (
        type(text.rule) is int
        and isinstance(text.template_arguments, dict)
        and text.chat_turns in (None, "all", "last")
        and isinstance(text.template_tokens, bool)
    )


def _unreadable(source: str | Path, flag: str, why: str) -> UsageError:
    return UsageError(
        f"{flag} {source}: {TEXT_FILE} cannot be read ({why}); expected the file that caskd export "
        "wrote; export the model again, or remove the file to ask the model by the flags alone"
    )


def conversation_options(
    source: str | Path,
    tokenizer: Any,
    flag: str,
    given: Mapping[str, Any],
    names: Mapping[str, str],
) -> ChatOptions:
    """How a model's conversations are rendered: as it was trained, else as given.

    Args:
        source: a folder or a hub id.
        tokenizer: the model's.
        flag: the option that named the model, for errors.
        given: fields of `ChatOptions` that are set, for instance by flags.
        names: their names in errors.

    Raises:
        UsageError: `TEXT_FILE` cannot be read.
        IdentityError: what is given contradicts what the model was trained on.
    """
    text = read_model_text(source, flag)
    if text is not None and text.rule > TEXT_RULE:
        raise IdentityError(
            f"{flag} {source}: was trained on text of rule {text.rule} ({TEXT_FILE}), but this "
            f"caskd makes prompts by rule {TEXT_RULE}; install a newer caskd"
        )
    if text is None or text.chat_turns is None:
        return ChatOptions(**given)
    trained = ChatOptions(
        arguments=json.dumps(text.template_arguments, sort_keys=True),
        template_tokens=text.template_tokens,
    )
    where = f"{flag} {source} was trained with"
    check_same_options(given, names, trained, tokenizer, where)
    return trained


def check_same_options(
    given: Mapping[str, Any],
    names: Mapping[str, str],
    used: ChatOptions,
    tokenizer: Any,
    where: str,
) -> None:
    """Refuse an option of conversations that differs from the one in use.

    Args:
        given: fields of `ChatOptions` that are set.
        names: their names in errors.
        used: the options; without a template, the tokenizer's is used.
        tokenizer: the model's.
        where: beginning of the sentence that ends with the value in use.

    Raises:
        IdentityError: names the field and both values.
    """
    own = asdict(used)
    if used.template is None:
        own["template"] = tokenizer.chat_template
    for field, value in given.items():
        if value != own[field]:
            raise IdentityError(
                f"{names[field]} is {_shown(field, value)}, but {where} "
                f"{_shown(field, own[field])}; expected the same; omit {names[field]}, or train "
                "another model with it"
            )


def _shown(field: str, value: Any) -> str:
    """A value in a line; of a template its start and digest."""
    if field != "template" or value is None:
        return escape_control(str(value))
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return f"{value_text(text)} (sha256 {sha256(text.encode()).hexdigest()[:12]})"


def check_template(tokenizer: Any, flag: str) -> None:
    """Refuse a model without a chat template, which data with messages needs.

    Args:
        tokenizer: of the model.
        flag: the option that named the model and its value.

    Raises:
        UsageError: it has none.
    """
    if not tokenizer.chat_template:
        raise UsageError(
            f"{flag}: the data has messages, but the model has no chat template; expected a model "
            "with one, or data with prompt and response columns; pass --chat-template FILE, or for "
            "a student export it again from a run that knows its teacher's template (caskd train "
            "--teacher-tokenizer FOLDER, then caskd export)"
        )
