"""Planning a capture: check everything, say what it is, tokenise, and write the empty store."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caskd.precompute.checkpoint import TeacherSource, find_teacher
from caskd.precompute.config import PrecomputeConfig, check_numbers
from caskd.store.corpus import Columns, corpus_digest, decide_columns, read_records
from caskd.store.errors import UsageError
from caskd.store.examples import TextOptions, TokenizedExample, tokenize_example
from caskd.store.planner import find_store, plan_store
from caskd.store.progress import progress
from caskd.store.spec import StoreSpec, check_identity
from caskd.store.vocabulary import template_digest, token_bytes, tokenizer_digest, vocab_digest
from caskd.store.weights import weights_digest


@dataclass(frozen=True)
class Job:
    """A checked capture: who answers, what is asked, and the identity of the store."""

    source: TeacherSource
    columns: Columns
    options: TextOptions
    vocab: list[bytes]
    num_records: int
    identity: dict[str, Any]


def plan(config: PrecomputeConfig) -> StoreSpec:
    """Write the token axis and the empty store, or take the one that is there.

    Returns:
        The spec of the store; with `dry_run` that of the store which would be written.

    Raises:
        UsageError: a flag, a file or a value that cannot be.
        IdentityError: a store of another identity is there.
    """
    return plan_job(config, check_job(config))


def check_job(config: PrecomputeConfig) -> Job:
    """Check a capture and build its identity; loads no weights and tokenises nothing.

    Raises:
        UsageError: a flag, a file or a value that cannot be.
        IdentityError: a store of another identity is there.
    """
    check_numbers(config)
    columns = decide_columns(next(read_records(config.data)), config.columns)
    source = find_teacher(
        config.teacher,
        config.dtype,
        adapter=config.adapter,
        attention=config.attention,
        device_map=config.device_map,
    )
    vocab = token_bytes(source.tokenizer)
    options = _text_options(config, source, columns, len(vocab))
    found = find_store(config.store)
    digest, num_records = corpus_digest(read_records(config.data), columns)
    identity = {
        "teacher": {
            "name": source.name,
            "revision": source.revision,
            "weights_digest": weights_digest(source.folder),
            "adapter": source.adapter.identity if source.adapter else None,
        },
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
            "template_digest": template_digest(source.tokenizer)
            if columns.kind == "messages"
            else None,
        },
        "corpus": {"digest": digest, "num_records": num_records},
        "capture": _capture(config, source),
        "encoding": config.encoding,
    }
    if found is not None:
        check_identity(found, identity, config.store)
    return Job(source, columns, options, vocab, num_records, identity)


def plan_job(config: PrecomputeConfig, job: Job) -> StoreSpec:
    """Plan the store of a checked capture, unless it is there."""
    found = find_store(config.store)
    if found is not None:
        print(f"{config.store}: planned before, {found.num_rows:,} rows")
        return found
    if config.dry_run:
        # The same planner, somewhere else: a number that is printed is the number that would be.
        with tempfile.TemporaryDirectory(prefix="caskd-dry-run-") as folder:
            spec = _write_plan(Path(folder) / "store", config, job)
    else:
        spec = _write_plan(config.store, config, job)
    print("\n".join(describe(config, job, spec)))
    return spec


def describe(config: PrecomputeConfig, job: Job, spec: StoreSpec) -> list[str]:
    """Every derived number of a plan, one a line."""
    source, capture = job.source, job.identity["capture"]
    row_bytes = 8 * spec.top_k + 22
    size = (
        row_bytes * spec.num_rows
        + 5 * spec.num_tokens
        + sum(map(len, job.vocab))
        + 8 * len(job.vocab)
    )
    return [
        f"plan of {config.store}" + (" (dry run: nothing is written)" if config.dry_run else ""),
        f"  teacher     {source.name}, {source.load_dtype}, attention {source.attention}"
        + (f", adapter {source.adapter.name}" if source.adapter else ""),
        f"  vocabulary  {spec.vocab_size:,} tokens, of which the teacher knows {source.num_ids:,}",
        f"  text        {job.columns.kind}, at most {job.options.max_length:,} tokens, "
        f"longer: {job.options.on_long}",
        f"  examples    {spec.num_examples:,} with {spec.num_tokens:,} tokens",
        f"  rows        {spec.num_rows:,} in {spec.num_shards:,} shards of {spec.shard_rows:,}",
        f"  kept        top {spec.top_k} of each row, min_mass {capture['min_mass']}",
        f"  size        at most {size / 1e6:,.1f} MB ({row_bytes} bytes a row before compression)",
    ]


def _text_options(
    config: PrecomputeConfig, source: TeacherSource, columns: Columns, vocab_size: int
) -> TextOptions:
    num_columns = min(vocab_size, source.num_ids)
    if config.top_k > num_columns:
        raise UsageError(
            f"--top-k is {config.top_k:,} but the teacher's vocabulary has {num_columns:,} tokens; "
            f"expected at most that: --top-k {num_columns}"
        )
    if columns.kind == "messages" and not config.eos:
        raise UsageError(
            "--no-eos was given for messages, where the chat template ends each turn; "
            "expected it with prompt and response, or text: leave it out"
        )
    max_length = config.max_length or source.max_length
    if max_length is None:
        raise UsageError("the teacher names no limit of length, expected one: type --max-length N")
    if source.max_length is not None and max_length > source.max_length:
        raise UsageError(
            f"--max-length is {max_length:,} but the teacher takes {source.max_length:,} tokens; "
            "expected at most that: leave it out, or add --on-long truncate or skip"
        )
    return TextOptions(
        eos=config.eos, max_length=max_length, on_long=config.on_long, vocab_size=num_columns
    )


def _capture(config: PrecomputeConfig, source: TeacherSource) -> dict[str, Any]:
    return {
        "kind": "topk",
        "top_k": config.top_k,
        "min_mass": config.min_mass,
        "load_dtype": source.load_dtype,
        # The head multiplies in the model's own dtype; only the result is widened to float32.
        "logits_dtype": source.load_dtype,
        "attention": source.attention,
        "quantization": None,
        "temperature": 1.0,
    }


def _write_plan(path: str | Path, config: PrecomputeConfig, job: Job) -> StoreSpec:
    return plan_store(
        path,
        job.identity,
        _tokenized(config, job),
        shard_rows=config.shard_rows,
        vocab=job.vocab,
    )


def _tokenized(config: PrecomputeConfig, job: Job) -> Iterator[TokenizedExample]:
    with progress("tokenise", job.num_records, "records") as bar:
        for index, record in enumerate(read_records(config.data)):
            yield tokenize_example(job.source.tokenizer, record, job.columns, job.options, index)
            bar.advance()
