"""Check a capture and build the identity of its store, before weights are loaded."""

from dataclasses import dataclass
from typing import Any

from caskd.precompute.config import PrecomputeConfig, check_numbers
from caskd.precompute.teacher import TeacherSource, find_teacher
from caskd.store.corpus import (
    Columns,
    TextOptions,
    corpus_digest,
    decide_columns,
    read_records,
    template_digest,
    token_bytes,
    tokenizer_digest,
    vocab_digest,
)
from caskd.store.errors import UsageError
from caskd.store.format import check_identity
from caskd.store.write import find_store


@dataclass(frozen=True)
class Job:
    """A checked capture: its teacher, how its corpus becomes tokens, and the store's identity."""

    source: TeacherSource
    columns: Columns
    options: TextOptions
    vocab: list[bytes]
    num_records: int
    identity: dict[str, Any]


def check_job(config: PrecomputeConfig) -> Job:
    """Check a capture and build its identity; loads no weights and tokenises nothing.

    Raises:
        UsageError: an option, a file or a value is invalid.
        IdentityError: the store exists and has another identity.
    """
    check_numbers(config)
    columns = decide_columns(next(read_records(config.data)), config.columns)
    source = find_teacher(config)
    vocab = token_bytes(source.tokenizer)
    options = text_options(config, source, columns, len(vocab))
    existing = find_store(config.store)
    digest, num_records = corpus_digest(read_records(config.data), columns)
    identity = {
        "teacher": source.identity(),
        "vocabulary": {
            "size": len(vocab),
            "digest": vocab_digest(vocab),
            "tokenizer_digest": tokenizer_digest(source.tokenizer),
        },
        "text": {
            "kind": columns.kind,
            "eos": options.eos,
            "max_length": options.max_length,
            "on_long": options.on_long,
            "on_duplicate": config.on_duplicate,
            "template_digest": template_digest(source.tokenizer)
            if columns.kind == "messages"
            else None,
        },
        "corpus": {"digest": digest, "num_records": num_records},
        "capture": {**targets(config), **source.capture()},
        "encoding": config.encoding,
    }
    if existing is not None:
        check_identity(existing, identity, config.store)
    return Job(source, columns, options, vocab, num_records, identity)


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
    if columns.kind == "messages" and not config.eos:
        raise UsageError(
            "--no-eos: the data has messages, whose chat template ends each turn; expected prompt "
            "and response, or text; omit --no-eos"
        )
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
        eos=config.eos, max_length=max_length, on_long=config.on_long, vocab_size=num_columns
    )


def targets(config: PrecomputeConfig) -> dict[str, Any]:
    """Fields of `identity.capture` that name what a row keeps of the teacher's distribution."""
    if config.sample is not None:
        return {
            "kind": "sampled",
            "num_samples": config.sample,
            "sample_seed": config.sample_seed,
        }
    min_mass = 1.0 if config.min_mass is None else config.min_mass
    return {"kind": "topk", "top_k": config.kept_logits, "min_mass": min_mass}
