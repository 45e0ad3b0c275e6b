"""`caskd import`: read a source once, plan a store in the order of digests, fill and seal it."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from caskd.models import open_tokenizer
from caskd.precompute.config import check_encoding, encoding_of
from caskd.precompute.import_config import ImportConfig
from caskd.precompute.imports.draws import draw_fields
from caskd.precompute.imports.examples import ForeignExample, clean_cells, row_counts, row_fields
from caskd.precompute.imports.formats import FORMATS
from caskd.precompute.imports.replies import read_replies
from caskd.precompute.imports.report import report_lines
from caskd.precompute.imports.source import Reading, Source, refuse_pickles
from caskd.precompute.imports.spool import Spool, SpooledExample
from caskd.precompute.rows import Fields, filler_draws, filler_rows
from caskd.store.corpus import (
    TEXT_RULE,
    TokenizedExample,
    row_labels,
    token_bytes,
    vocabulary_identity,
)
from caskd.store.errors import IdentityError, UsageError
from caskd.store.format import SAMPLED, TOPK, StoreSpec
from caskd.store.io import progress, tell
from caskd.store.read import TeacherStore
from caskd.store.write import ShardWork, StoreWriter, check_fillable, find_store, plan_store

_MAX_LOST, _FULL = 0.01, 1e-3


@dataclass
class Survey:
    """What the first reading of a source found."""

    num_examples: int = 0
    num_without_rows: int = 0
    """Examples without a row."""
    num_rows: int = 0
    longest: int = 0
    top_k: int = 0
    num_draws: int = 0
    """Draws of each row; 0: rows of log-probabilities."""
    num_labels: int = 0
    """Rows whose label is among the cells."""
    num_unknown_labels: int = 0
    """Rows with cells whose label is not among them."""
    num_full: int = 0
    """Rows whose cells hold all probability."""
    ends_in_eos: bool = False
    counts: Counter[str] = field(default_factory=Counter)


def import_command(config: ImportConfig) -> None:
    """Run `caskd import`.

    Raises:
        UsageError: an option or the source is invalid.
        IdentityError: the store exists and has another identity.
    """
    import_rows(config)


def import_rows(config: ImportConfig) -> TeacherStore | None:
    """Import a source into a sealed store; a rerun completes the missing shards.

    Returns:
        The store; None with `dry_run`.

    Raises:
        UsageError: an option or the source is invalid.
        IdentityError: the store exists and has another identity.
    """
    check_encoding(config.encoding)
    refuse_pickles(config.source)
    tokenizer = open_tokenizer(config.tokenizer, "--tokenizer")
    vocab = token_bytes(tokenizer)
    vocabulary = vocabulary_identity(tokenizer, vocab)
    encoding = _check_existing(config, vocabulary)
    reading = Reading.of(tokenizer, pad_is_eos=config.pad_is_eos)
    source = FORMATS[config.format](config.source, reading)
    if config.from_messages:
        replies = read_replies(tokenizer, config.data)
        source = replace(source, examples=map(replies.applied, source.examples))
    with Spool.beside(config.store) as spool:
        survey = read_source(source, spool, len(vocab), vocabulary["eos_id"])
        _check_rows(config, survey)
        has_tail = source.has_tail and survey.num_full < survey.num_rows
        identity = _identity(config, survey, source, has_tail, vocabulary, spool)
        identity["encoding"] = encoding
        lines = report_lines(config, vars(survey), has_tail=has_tail)
        tell("\n".join(lines))
        if config.dry_run:
            return None
        spec = plan_store(
            config.store, identity, _tokenized(spool), shard_rows=config.shard_rows, vocab=vocab
        )
        _fill(config, spec, spool, has_tail=has_tail)
    store = TeacherStore.open(config.store)
    flags = "--tail bucket" if has_tail else "--tail renormalise"
    if survey.num_draws:
        flags = "--objective dist"  # the default's mask reads the teacher's argmax
    tell(
        f"{config.store}: sealed, digest {store.digest[:12]}\nnext: caskd train --store "
        f"{config.store} --student MODEL --out RUN --accept-imported {flags}"
    )
    return store


def _check_existing(config: ImportConfig, vocabulary: dict[str, Any]) -> str:
    """Refuse an existing store of something else before the source is read.

    Returns:
        The store's encoding.

    Raises:
        IdentityError: names the first field that differs.
    """
    existing = find_store(config.store)
    encoding = encoding_of(config.encoding, existing)
    if existing is None:
        return encoding
    check_fillable(existing, config.store)
    identity = existing.identity
    for name, there, here in (
        ("capture.imported_from", identity["capture"].get("imported_from"), config.format),
        ("teacher.name", identity["teacher"]["name"], config.teacher_name),
        ("vocabulary.digest", identity["vocabulary"]["digest"], vocabulary["digest"]),
        ("encoding", identity["encoding"], encoding),
    ):
        if there != here:
            raise IdentityError(
                f"{config.store}: holds another capture; {name} is {there} there, but {here} "
                "here; pass the same inputs, or another --store"
            )
    return encoding


def read_source(source: Source, spool: Spool, vocab_size: int, eos_id: int | None) -> Survey:
    """Write every example of a source to the spool, cleaned, and sort it by digest.

    Raises:
        UsageError: the source is damaged, or its tokens are of another vocabulary.
    """
    survey = Survey()
    for example in source.examples:
        _check_tokens(example, vocab_size)
        cells = clean_cells(example.ids, example.logprobs, vocab_size)
        if example.num_draws:  # the order of counts means nothing, and ties are usual
            cells.counts.pop("resorted_rows")
            cells.counts.pop("tied_argmax_rows")
        spool.append(example, cells)
        labels = row_labels(example.token_ids.astype(np.uint32), example.is_response)
        kept, mass = cells.num_kept, np.exp(cells.logprobs.astype(np.float64)).sum(axis=1)
        hits = (cells.ids == labels[:, None]) & np.isfinite(cells.logprobs)
        survey.num_examples += 1
        survey.num_without_rows += not len(labels)
        survey.num_rows += len(labels)
        survey.longest = max(survey.longest, len(example.token_ids))
        survey.top_k = max(survey.top_k, int(kept.max(initial=0)))
        survey.num_labels += int(hits.any(axis=1).sum())
        survey.num_unknown_labels += int((~hits.any(axis=1) & (kept > 0)).sum())
        survey.num_full += int(((mass > 1 - _FULL) | (kept == 0)).sum())
        survey.ends_in_eos |= bool(len(labels)) and int(labels[-1]) == eos_id
        survey.num_draws = max(survey.num_draws, example.num_draws)
        survey.counts.update(cells.counts)
    spool.sort()
    return survey


def _check_tokens(example: ForeignExample, vocab_size: int) -> None:
    largest = int(example.token_ids.max(initial=0))
    if example.num_draws:  # a row without one of its draws would have another number of them
        largest = max(largest, int(example.ids.max(initial=0)))
    if largest >= vocab_size:
        raise UsageError(
            f"--tokenizer: has {vocab_size:,} ids, but the source has the token id {largest:,}; "
            "expected the tokenizer of the source; pass the teacher's"
        )


def _check_rows(config: ImportConfig, survey: Survey) -> None:
    lost = survey.counts["lost_rows"]
    if survey.num_rows == 0:
        raise UsageError(
            f"{config.source}: {survey.num_examples:,} examples without a row; expected at least "
            "one row; check SOURCE" + (" and --data" if config.from_messages else "")
        )
    if lost > _MAX_LOST * survey.num_rows:
        raise UsageError(
            f"{config.source}: {lost:,} of {survey.num_rows:,} rows have no usable value; expected "
            "log-probabilities of temperature 1 and ids of --tokenizer; check both"
        )


def _identity(
    config: ImportConfig, survey: Survey, source: Source, has_tail: bool,
    vocabulary: dict[str, Any], spool: Spool,
) -> dict[str, Any]:  # fmt: skip
    return {
        "teacher": {
            "name": config.teacher_name,
            "revision": None,
            "weights_digest": None,
            "config_digest": None,
            "adapter": None,
        },
        "vocabulary": vocabulary,
        "text": {
            "kind": "text",
            "eos": survey.ends_in_eos,
            "max_length": survey.longest,
            "on_long": "error",
            "on_duplicate": "keep",
            "rule": TEXT_RULE,
            "template_digest": None,
        },
        "corpus": {
            "digest": spool.digest(),
            "num_records": survey.num_examples,
        },
        "capture": {
            **(_draws(survey) if survey.num_draws else _log_probs(survey, source, has_tail)),
            "load_dtype": "unknown",
            "attention": None,
            "quantization": None,
            "temperature": 1.0,
            "values": "log-probs",
            "imported_from": config.format,
        },
    }


def _log_probs(survey: Survey, source: Source, has_tail: bool) -> dict[str, Any]:
    return {
        "kind": TOPK.name,
        "top_k": survey.top_k,
        "min_mass": 1.0,
        "logits_dtype": source.precision,
        "label": "within_topk" if survey.num_unknown_labels else "exact",
        "rank": "capped" if survey.num_unknown_labels else "exact",
        "tail": "complement" if has_tail else "unknown",
    }


def _draws(survey: Survey) -> dict[str, Any]:
    """Of a sampled store; `argmax` unknown holds for `label_rank`, too."""
    return {
        "kind": SAMPLED.name,
        "num_samples": survey.num_draws,
        "sample_seed": None,
        "logits_dtype": "unknown",
        "label": "within_topk",
        "argmax": "unknown",
    }


def _tokenized(spool: Spool) -> Iterator[TokenizedExample]:
    return (example.tokenized(index) for index, example in enumerate(spool))


def _fill(config: ImportConfig, spec: StoreSpec, spool: Spool, *, has_tail: bool) -> None:
    """Commit every missing shard, and seal the store."""
    writer = StoreWriter(config.store)
    filler = filler_draws if spec.kind == SAMPLED.name else filler_rows
    if writer.sealed:
        return

    def rows_of(work: ShardWork, num_rows: int) -> tuple[Fields, list[int], Counter[str]]:
        rows, counts, lost = filler(num_rows, spec.num_cells), Counter[str](), []
        for example in work.examples:
            spooled = spool.read(example.index)
            fields = example_rows(spooled, spec, has_tail=has_tail)
            for name, values in fields.items():
                rows[name][example.row_start : example.row_start + example.row_count] = values
            counts += spooled.cells.counts + row_counts(fields)
            if not fields["num_kept"].all():
                lost.append(example.index)
        return rows, lost, counts

    missing: Sequence[int] = writer.missing_shards()
    with progress("import", len(missing), "shards") as bar:
        for shard in missing:
            work = writer.shard(shard)
            rows, lost, counts = rows_of(work, spec.shard_rows)
            writer.commit(work, rows, lost, counts)
            bar.advance()
    writer.seal()


def example_rows(example: SpooledExample, spec: StoreSpec, *, has_tail: bool) -> Fields:
    """The row fields of an example of the spool."""
    labels = row_labels(example.token_ids, example.is_response)
    if spec.kind == SAMPLED.name:
        return draw_fields(example.cells, labels, spec.num_samples)
    return row_fields(example.cells, labels, spec.top_k, has_tail=has_tail)
