"""Planning a capture: check everything, say what it is, tokenise, and write the empty store."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caskd.models import config_digest, weights_digest
from caskd.precompute.config import PlanConfig, PrecomputeConfig, check_numbers
from caskd.precompute.planning.forecast import bytes_bracket
from caskd.precompute.planning.plan_report import next_line, plan_lines
from caskd.precompute.planning.policies import check_examples
from caskd.precompute.planning.survey import Survey, planned_examples
from caskd.precompute.planning.tokenization import tokenized
from caskd.precompute.teacher import TeacherSource, find_teacher
from caskd.store.commits import commit_record
from caskd.store.corpus import (
    Columns,
    TextOptions,
    TokenizedExample,
    corpus_digest,
    decide_columns,
    read_records,
    template_digest,
    token_bytes,
    tokenizer_digest,
    vocab_digest,
)
from caskd.store.errors import UsageError
from caskd.store.format import StoreSpec, check_identity
from caskd.store.io import progress
from caskd.store.write import find_store, plan_store


@dataclass(frozen=True)
class Job:
    """A checked capture: who answers, what is asked, and the identity of the store."""

    source: TeacherSource
    columns: Columns
    options: TextOptions
    vocab: list[bytes]
    num_records: int
    identity: dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """A store that is laid out: where, what it is, and what its corpus turned out to be."""

    root: Path
    spec: StoreSpec
    survey: dict[str, Any]
    reused: bool
    """It was there before."""

    @property
    def num_bytes(self) -> int:
        """Bytes of everything but the rows: tokens, examples, vocabulary."""
        return commit_record.read_record(self.root, commit_record.PLAN).bytes_by_array().total()


def plan(config: PrecomputeConfig) -> StoreSpec:
    """Write the token axis and the empty store, or take the one that is there.

    Returns:
        The spec of the store; with `dry_run` that of the store which would be written.

    Raises:
        UsageError: a flag, a file or a value that cannot be.
        IdentityError: a store of another identity is there.
    """
    return plan_job(config, check_job(config))


def plan_command(config: PlanConfig) -> None:
    """`caskd plan`: the same, with a forecast when it is asked for.

    Raises:
        UsageError: a flag, a file or a value that cannot be.
        IdentityError: a store of another identity is there.
    """
    job = check_job(config)
    with _planned(config, job) as made:
        facts = plan_facts(config, job, made)
        if config.probe:
            from caskd.precompute.planning.probe import run_probe

            facts["forecast"] = run_probe(config, job.source, made.root, made.num_bytes)
    lines = [*plan_lines(facts), next_line(facts)]
    print(json.dumps(facts, indent=1) if config.json else "\n".join(lines))


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
            "config_digest": config_digest(source.folder),
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
            "on_duplicate": config.on_duplicate,
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
    with _planned(config, job) as made:
        print("\n".join(plan_lines(plan_facts(config, job, made))))
    return made.spec


@contextmanager
def _planned(config: PrecomputeConfig, job: Job) -> Iterator[Plan]:
    """The store of a checked capture; with `dry_run` one that is gone afterwards."""
    survey = Survey(len(job.vocab))
    found = find_store(config.store)
    if found is not None:
        root = Path(config.store)
        for _ in survey.watch(planned_examples(root), skip_duplicates=False):
            pass
        yield Plan(root, found, survey.facts(), reused=True)
    elif config.dry_run:
        # The same planner, somewhere else: a number that is printed is the number that would be.
        with tempfile.TemporaryDirectory(prefix="caskd-dry-run-") as folder:
            root = Path(folder) / "store"
            spec = _write_plan(root, config, job, survey)
            yield Plan(root, spec, survey.facts(), reused=False)
    else:
        root = Path(config.store)
        spec = _write_plan(root, config, job, survey)
        yield Plan(root, spec, survey.facts(), reused=False)


def plan_facts(config: PrecomputeConfig, job: Job, made: Plan) -> dict[str, Any]:
    """Every derived number of a plan, in JSON types."""
    source, spec = job.source, made.spec
    low, high = bytes_bracket(spec, made.num_bytes)
    return {
        "store": config.store,
        "dry_run": config.dry_run,
        "reused": made.reused,
        "data": list(config.data),
        "teacher": {
            "name": source.name,
            "load_dtype": source.load_dtype,
            "attention": source.attention,
            "num_ids": source.num_ids,
        },
        "identity": spec.identity,
        "geometry": {
            "num_examples": spec.num_examples,
            "num_tokens": spec.num_tokens,
            "num_rows": spec.num_rows,
            "num_shards": spec.num_shards,
            "shard_rows": spec.shard_rows,
            "filler_share": 1 - spec.num_rows / (spec.num_shards * spec.shard_rows),
        },
        **made.survey,
        "policies": {
            "on_long": config.on_long,
            "on_empty": config.on_empty,
            "on_duplicate": config.on_duplicate,
            "on_out_of_vocabulary": config.on_out_of_vocabulary,
            "max_non_finite": config.max_non_finite,
        },
        "bytes": {"plan": made.num_bytes, "least": low, "most": high},
        "forecast": None,
    }


def _text_options(
    config: PrecomputeConfig, source: TeacherSource, columns: Columns, vocab_size: int
) -> TextOptions:
    num_columns = min(vocab_size, source.num_ids)
    top_k = config.kept_logits
    if top_k is not None and top_k > num_columns:
        raise UsageError(
            f"--top-k is {top_k:,} but the teacher's vocabulary has {num_columns:,} tokens; "
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
        **_kept(config),
        "load_dtype": source.load_dtype,
        # The head multiplies in the model's own dtype; only the result is widened to float32.
        "logits_dtype": source.load_dtype,
        "attention": source.attention,
        "quantization": None,
        "temperature": 1.0,
    }


def _kept(config: PrecomputeConfig) -> dict[str, Any]:
    """What a row keeps."""
    if config.sample is not None:
        return {
            "kind": "sampled", "num_samples": config.sample, "sample_seed": config.sample_seed,
        }  # fmt: skip
    min_mass = 1.0 if config.min_mass is None else config.min_mass
    return {"kind": "topk", "top_k": config.kept_logits, "min_mass": min_mass}


def _write_plan(path: str | Path, config: PrecomputeConfig, job: Job, survey: Survey) -> StoreSpec:
    return plan_store(
        path,
        job.identity,
        _examples(config, job, survey),
        shard_rows=config.shard_rows,
        vocab=job.vocab,
    )


def _examples(config: PrecomputeConfig, job: Job, survey: Survey) -> Iterator[TokenizedExample]:
    """Examples of the corpus, surveyed as they pass; refused at the end if the policies say so."""
    examples = tokenized(
        job.source.tokenizer,
        read_records(config.data),
        job.columns,
        job.options,
        num_processes=config.tokenize_processes,
    )
    skip = config.on_duplicate == "skip"
    with progress("tokenise", job.num_records, "records") as bar:
        for example in survey.watch(examples, skip_duplicates=skip):
            yield example
            bar.advance()
    check_examples(config, survey.facts(), job.options.max_length)
