"""`caskd plan`: check a capture, tokenise its corpus, lay out the empty store, and report it."""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from caskd.precompute.config import PlanConfig, PrecomputeConfig
from caskd.precompute.planning.corpus_stats import CorpusStats, planned_examples
from caskd.precompute.planning.forecast import bytes_bracket
from caskd.precompute.planning.identity import Job, check_job, corpus_records
from caskd.precompute.planning.plan_report import next_step, plan_lines, shards_there
from caskd.precompute.planning.policies import check_examples
from caskd.precompute.planning.tokenization import tokenize_corpus
from caskd.precompute.teacher import follow, rank_group
from caskd.store.commits import commit_record
from caskd.store.corpus import TokenizedExample
from caskd.store.format import StoreSpec
from caskd.store.inspect import text_counts
from caskd.store.io import progress, tell
from caskd.store.read import TeacherStore
from caskd.store.write import find_store, plan_store, record_text_counts


@dataclass(frozen=True)
class Plan:
    """A planned store: its directory, its spec, and statistics of its corpus."""

    root: Path
    spec: StoreSpec
    corpus: dict[str, Any]
    """As `CorpusStats.facts` returns them."""
    reused: bool
    """The store was planned before this call."""

    def num_committed_shards(self) -> int:
        """Shards that a capture has filled."""
        return TeacherStore.open(self.root, allow_unsealed=True).num_committed_shards()

    @property
    def num_bytes(self) -> int:
        """Bytes of everything but the rows: tokens, examples, vocabulary."""
        return commit_record.read_record(self.root, commit_record.PLAN).bytes_by_array().total()


def plan(config: PrecomputeConfig) -> StoreSpec:
    """Write the token axis and the empty store, or reuse the store if it exists.

    Returns:
        The spec of the store; with `dry_run` that of the store which would be written.

    Raises:
        UsageError: an option, a file or a value is invalid.
        IdentityError: the store exists and has another identity.
    """
    return plan_job(config, check_job(config))


def plan_command(config: PlanConfig) -> None:
    """Run `caskd plan`: plan, forecast with --probe, and print the report.

    Raises:
        UsageError: an option, a file or a value is invalid.
        IdentityError: the store exists and has another identity.
    """
    launched = "RANK" in os.environ  # by torchrun, whose processes must not all plan
    with rank_group(config, os.environ) if config.probe or launched else nullcontext() as group:
        if group is not None and group.rank > 0:
            follow(config, group)
        else:
            _report_plan(config)


def _report_plan(config: PlanConfig) -> None:
    job = check_job(config)
    with _planned(config, job) as planned:
        facts = plan_facts(config, job, planned)
        if config.probe:
            from caskd.precompute.planning.probe import run_probe

            facts["forecast"] = run_probe(config, job.source, planned.root, planned.num_bytes)
    lines = [*plan_lines(facts), next_step(facts)]
    tell(json.dumps(facts, indent=1) if config.json else "\n".join(lines))


def survey(config: PrecomputeConfig) -> dict[str, Any]:
    """Every derived number of a plan, which is not written.

    Args:
        config: of the capture, with `dry_run`; its store must not exist.

    Raises:
        UsageError: an option, a file or a value is invalid.
    """
    job = check_job(config)
    with _planned(config, job) as planned:
        return plan_facts(config, job, planned)


def plan_job(config: PrecomputeConfig, job: Job) -> StoreSpec:
    """Plan the store of a checked capture, unless it exists."""
    existing = find_store(config.store)
    if existing is not None:
        store = TeacherStore.open(config.store, allow_unsealed=True)
        there = shards_there(store.num_committed_shards(), existing.num_shards)
        tell(f"{config.store}: already planned, {existing.num_rows:,} rows; {there}")
        return existing
    with _planned(config, job) as planned:
        tell("\n".join(plan_lines(plan_facts(config, job, planned))))
    return planned.spec


@contextmanager
def _planned(config: PrecomputeConfig, job: Job) -> Iterator[Plan]:
    """Open or write the plan of a checked capture; with `dry_run` it is deleted afterwards."""
    stats = CorpusStats(len(job.vocab))
    existing = find_store(config.store)
    if existing is not None:
        root = Path(config.store)
        for _ in stats.observe(planned_examples(root), skip_duplicates=False):
            pass
        stats.text_counts.update(text_counts(root))
        yield Plan(root, existing, stats.facts(), reused=True)
    elif config.dry_run:
        # The same planner in a temporary directory, so that all numbers are those of the real plan.
        with tempfile.TemporaryDirectory(prefix="caskd-dry-run-") as folder:
            root = Path(folder) / "store"
            spec = _write_plan(root, config, job, stats)
            yield Plan(root, spec, stats.facts(), reused=False)
    else:
        root = Path(config.store)
        spec = _write_plan(root, config, job, stats)
        yield Plan(root, spec, stats.facts(), reused=False)


def plan_facts(config: PrecomputeConfig, job: Job, planned: Plan) -> dict[str, Any]:
    """Collect every derived number of a plan, in JSON types."""
    spec, capture = planned.spec, job.identity["capture"]
    low, high = bytes_bracket(spec, planned.num_bytes)
    return {
        "store": config.store,
        "dry_run": config.dry_run,
        "reused": planned.reused,
        "num_committed_shards": planned.num_committed_shards(),
        "data": list(config.data),
        "teacher": {
            "name": job.source.name,
            "load_dtype": capture["load_dtype"],
            "attention": capture.get("attention"),
            "num_ids": job.source.num_ids,
            "weights": None if job.source.weights is None else asdict(job.source.weights),
            "tensor_parallel": config.tensor_parallel,
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
        **planned.corpus,
        "ignored_columns": list(job.ignored_columns),
        "policies": {
            "on_long": config.on_long,
            "on_empty": config.on_empty,
            "on_bad_chat": config.on_bad_chat,
            "on_unfinished": config.on_unfinished,
            "on_duplicate": config.on_duplicate,
            "on_out_of_vocabulary": config.on_out_of_vocabulary,
            "max_non_finite": config.max_non_finite,
        },
        "bytes": {"plan": planned.num_bytes, "least": low, "most": high},
        "forecast": None,
    }


def _write_plan(
    path: str | Path, config: PrecomputeConfig, job: Job, stats: CorpusStats
) -> StoreSpec:
    spec = plan_store(
        path,
        job.identity,
        _examples(config, job, stats),
        shard_rows=config.planned_shard_rows,
        vocab=job.vocab,
    )
    counted = {name: count for name, count in stats.text_counts.items() if count}
    if counted:
        record_text_counts(Path(path), counted)
    return spec


def _examples(config: PrecomputeConfig, job: Job, stats: CorpusStats) -> Iterator[TokenizedExample]:
    """Yield the corpus' examples and count them in `stats`.

    Raises:
        UsageError: at the end, if a policy refuses any of them.
    """
    examples = tokenize_corpus(
        job.source.tokenizer,
        corpus_records(config),
        job.columns,
        job.options,
        num_processes=config.tokenize_processes,
    )
    skip = config.on_duplicate == "skip"
    with progress("tokenise", job.num_records, "records") as bar:
        for example in stats.observe(examples, skip_duplicates=skip):
            yield example
            bar.advance()
    check_examples(config, stats.facts(), job.options.max_length)
