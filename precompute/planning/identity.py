"""Check a capture and build the identity of its store, before weights are loaded."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from caskd.models import check_device_name, check_template
from caskd.precompute.backend_flags import check_backend
from caskd.precompute.config import PrecomputeConfig, check_numbers, encoding_of
from caskd.precompute.planning.policies import check_planned_flags
from caskd.precompute.teacher import TeacherSource, find_teacher
from caskd.store.corpus import (
    TEXT_RULE,
    ChatOptions,
    Columns,
    Record,
    TextOptions,
    check_chat_flags,
    corpus_digest,
    decide_columns,
    given_chat_options,
    read_records,
    template_digest,
    text_columns,
    text_tokens,
    token_bytes,
    vocabulary_identity,
)
from caskd.store.errors import IdentityError, UsageError
from caskd.store.fingerprint import FINGERPRINT
from caskd.store.format import SPECIAL_TOKEN_FIELDS, TOPK, StoreSpec, check_identity
from caskd.store.io import parse_json
from caskd.store.write import check_fillable, find_store


@dataclass(frozen=True)
class Job:
    """A checked capture: its teacher, how its corpus becomes tokens, and the store's identity."""

    source: TeacherSource
    columns: Columns
    options: TextOptions
    vocab: list[bytes]
    num_records: int
    identity: dict[str, Any]
    ignored_columns: tuple[str, ...] = ()
    """Columns of a corpus of messages that nothing reads."""


def corpus_records(config: PrecomputeConfig) -> Iterator[Record]:
    """The records of the corpus, with the values of the columns that can reach a text."""
    return read_records(config.data, text_columns(config.columns), config.on_bad_text)


def check_job(config: PrecomputeConfig) -> Job:
    """Check a capture and build its identity; loads no weights and tokenises nothing.

    Raises:
        UsageError: an option, a file or a value is invalid.
        IdentityError: the store exists and has another identity.
    """
    check_device_name(config.device)
    check_numbers(config)
    check_backend(config)
    columns = decide_columns(next(corpus_records(config)), config.columns)
    source = find_teacher(config)
    vocab = token_bytes(source.tokenizer)
    options = text_options(config, source, columns, len(vocab))
    existing = find_store(config.store)
    if existing is not None:
        _check_rule(existing, config.store)
        check_fillable(existing, config.store)
    ignored: dict[str, None] = {}
    digest, num_records = corpus_digest(corpus_records(config), columns, ignored)
    identity: dict[str, Any] = {
        "teacher": source.identity(),
        "vocabulary": vocabulary_identity(source.tokenizer, vocab),
        "text": {
            "kind": columns.kind,
            "eos": options.eos,
            "max_length": options.max_length,
            "on_long": options.on_long,
            "on_duplicate": config.on_duplicate,
            "rule": TEXT_RULE,
            # Absent means skip, as in stores of older versions.
            **({"on_unfinished": "keep"} if config.on_unfinished == "keep" else {}),
            **_template_identity(source.tokenizer, columns, options.chat),
        },
        "corpus": {"digest": digest, "num_records": num_records},
        "capture": {**targets(config), **source.capture()},
        "encoding": encoding_of(config.encoding, existing),
    }
    if existing is not None:
        # Stores of older versions lack these ids, which their tokenizer digest covers.
        absent = SPECIAL_TOKEN_FIELDS - existing.identity["vocabulary"].keys()
        for field in absent:
            del identity["vocabulary"][field]
        planned = existing.identity["teacher"].get(FINGERPRINT)
        known = {} if planned is None else {FINGERPRINT: planned}
        teacher = {**identity["teacher"], **known}
        check_identity(existing, {**identity, "teacher": teacher}, config.store)
        check_planned_flags(config, existing)
    fingerprint = source.fingerprint()
    if fingerprint is not None:
        identity["teacher"][FINGERPRINT] = fingerprint
        if existing is not None:
            check_identity(existing, identity, config.store)
    return Job(source, columns, options, vocab, num_records, identity, tuple(ignored))


def _template_identity(tokenizer: Any, columns: Columns, chat: ChatOptions) -> dict[str, Any]:
    """Fields of `identity.text` about the chat template."""
    if columns.kind != "messages":
        return {"template_digest": None}
    template = tokenizer.chat_template if chat.template is None else chat.template
    return {
        "template_digest": template_digest(tokenizer, chat.template),
        "template": template,
        "template_arguments": parse_json(chat.arguments),
        "chat_turns": chat.turns,
        "template_tokens": chat.template_tokens,
    }


def _check_rule(existing: StoreSpec, where: str) -> None:
    """Refuse to continue a store whose text became tokens by another rule.

    Raises:
        IdentityError: names both rules.
    """
    rule = existing.text_rule
    if rule != TEXT_RULE:
        raise IdentityError(
            f"{where} was planned by another text rule: identity.text.rule is {rule} there, but "
            f"this caskd captures by rule {TEXT_RULE}; it stays readable: pass another --store for "
            "a new capture, or complete it with the caskd that planned it"
        )


def text_options(
    config: PrecomputeConfig, source: TeacherSource, columns: Columns, vocab_size: int
) -> TextOptions:
    """Resolve how records become tokens, within the teacher's vocabulary and length limit.

    Raises:
        UsageError: an option contradicts the corpus or exceeds a limit of the teacher.
    """
    num_columns = min(vocab_size, source.num_ids)
    top_k = config.kept_logits
    if top_k is not None and top_k > num_columns:
        raise UsageError(
            f"--top-k {top_k}: more than the {num_columns:,} tokens of the teacher's vocabulary; "
            f"expected {num_columns:,} or fewer; pass --top-k {num_columns}"
        )
    if config.head is not None and config.head >= num_columns:
        raise UsageError(
            f"--head {config.head}: leaves none of the {num_columns:,} tokens of the teacher's "
            f"vocabulary to draw; expected {num_columns - 1:,} or fewer; pass a smaller --head"
        )
    if columns.kind == "messages" and not config.eos:
        raise UsageError(
            "--no-eos: the data has messages, whose chat template ends each turn; expected prompt "
            "and response, or text; omit --no-eos"
        )
    chat = _chat_options(config, columns, source.tokenizer)
    text_tokens(source.tokenizer)  # refuses a tokenizer whose bytes do not reproduce its text
    max_length = config.max_length or source.max_length
    if max_length is None:
        raise UsageError(
            "--teacher: its configuration has no length limit; expected one; pass --max-length N"
        )
    if source.max_length is not None and max_length > source.max_length:
        raise UsageError(
            f"--max-length {max_length}: the teacher takes {source.max_length:,} tokens; expected "
            f"{source.max_length:,} or fewer; omit --max-length, and pass --on-long truncate or "
            "--on-long skip for longer examples"
        )
    return TextOptions(
        eos=config.eos,
        max_length=max_length,
        on_long=config.on_long,
        vocab_size=num_columns,
        chat=chat,
        keep_unfinished=config.on_unfinished == "keep",
    )


def _chat_options(config: PrecomputeConfig, columns: Columns, tokenizer: Any) -> ChatOptions:
    """How conversations are rendered.

    Raises:
        UsageError: an option of conversations was given without conversations, or is invalid, or
            the teacher has no chat template.
    """
    given = given_chat_options(
        config.chat_template, config.template_arguments, config.train_template_tokens
    )
    if config.chat_turns != "all":
        given["turns"] = config.chat_turns
    check_chat_flags(str(columns.kind), given)
    if columns.kind == "messages" and config.chat_template is None:
        check_template(tokenizer, f"--teacher {config.teacher}")
    return ChatOptions(**given)


def targets(config: PrecomputeConfig) -> dict[str, Any]:
    """Fields of `identity.capture` that name what a row keeps of the teacher's distribution."""
    if config.sample is not None:
        return {
            "kind": config.row_kind.name,
            **({} if config.head is None else {"head": config.head}),
            "num_samples": config.sample,
            "sample_seed": config.sample_seed,
        }
    min_mass = 1.0 if config.min_mass is None else config.min_mass
    return {"kind": TOPK.name, "top_k": config.kept_logits, "min_mass": min_mass}
