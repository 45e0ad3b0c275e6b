"""A student with another tokenizer than its teacher: whether it has one, and how the two align."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from caskd.models import check_template, check_vocabulary
from caskd.store import TeacherStore
from caskd.store.corpus import (
    ChatOptions,
    Columns,
    Record,
    corpus_digest,
    read_records,
)
from caskd.store.errors import IdentityError, UsageError
from caskd.store.format import TOPK
from caskd.train.data import (
    LeftOut,
    MixedOrder,
    StoreMix,
    StudentTokens,
    mapped_shares,
    own_vocabulary,
    read_spans,
    span_fields,
)
from caskd.train.objectives import Objective, Tail

SAMPLE = 256
"""Examples that are aligned before a run starts."""
_READ_TOGETHER = 1024
"""Examples that are read at once where all are tokenised."""


@dataclass(frozen=True)
class AlignmentStats:
    """How a student's tokens align with the teacher's, over a sample of examples."""

    mapped: Mapping[str, float | None]
    """`mapped_shares` of the sample; empty where no top-k is read."""
    num_examples: int
    num_other_bytes: int
    """Examples whose replies have other bytes in the student's tokens."""
    num_too_long: int
    """Examples with more tokens than the student has positions."""
    num_teacher_rows: int
    num_student_rows: int
    num_spans: int
    num_pairs: int
    """Spans of one token on both sides."""
    longest_teacher: int
    """Teacher tokens of the longest span."""
    longest_student: int
    longest_example: int
    """Student tokens of the longest example."""

    @property
    def other_bytes(self) -> float:
        """Share of the examples with other bytes."""
        return self.num_other_bytes / max(1, self.num_examples)

    def line(self) -> str:
        """For people."""
        rows, spans = max(1, self.num_teacher_rows), max(1, self.num_spans)
        return (
            f"{self.num_pairs / rows:.1%} of the teacher's tokens are one token of the student; "
            f"{rows / spans:.2f} and {self.num_student_rows / spans:.2f} tokens per span (most: "
            f"{self.longest_teacher} and {self.longest_student})"
        )

    def sample_line(self) -> str:
        """For people: the sample, and the examples in it that teach nothing."""
        return (
            f"{self.num_examples} examples, the longest {self.longest_example:,} tokens of the "
            f"student; left out: {self.num_other_bytes} with other bytes, {self.num_too_long} "
            "longer than the student's positions"
        )


@dataclass(frozen=True, kw_only=True)
class SpanOptions:
    """What training over spans needs besides stores and tokenizer."""

    student: str
    """The option that named the student and its value, such as `--student gpt2`."""
    objective_name: str
    objective: Objective
    tail: Tail | None = None
    data: tuple[str, ...] = ()
    """Corpora of stores of conversations."""
    messages_column: str = "messages"
    max_length: int | None = None
    """Positions of the student; None: no limit."""


def student_tokens(
    stores: Sequence[TeacherStore], tokenizer: Any, options: SpanOptions
) -> tuple[StudentTokens, ...] | None:
    """The student's tokens of each store; None where it shares the vocabulary of all of them and
    the objective reads the teacher's tokens.

    Raises:
        IdentityError: the objective needs one vocabulary, and the student has another.
        UsageError: a store lacks what the objective reads, or its text cannot be rendered.
    """
    own, objective = own_vocabulary(tokenizer), options.objective
    shared = all(one.spec.vocab_digest == own.digest for one in stores)
    if shared and not objective.matches_spans:
        return None
    if objective.needs_distribution:
        _refuse_distribution(options, stores, tokenizer)
    for one in stores:
        _check_store(one, objective, options.objective_name)
        _check_eos(one, tokenizer, options.student)
    if objective.maps_topk and options.tail not in (None, "bucket"):
        raise UsageError(
            f"--tail {options.tail}: --match bytes-1to1 has one bucket for the teacher's mass that "
            "the student's tokens do not have; expected bucket; omit --tail"
        )
    kinds = [one.spec.identity["text"]["kind"] for one in stores]
    corpora = _Corpora(options, tokenizer) if "messages" in kinds else None
    found = []
    for one, kind in zip(stores, kinds, strict=True):
        given = corpora.of(one) if corpora is not None and kind == "messages" else {}
        found.append(StudentTokens(tokenizer, one, max_length=options.max_length, own=own, **given))
    return tuple(found)


class _Corpora:
    """The conversations of --data, by the digest of the corpus: of each file, and of all."""

    def __init__(self, options: SpanOptions, tokenizer: Any) -> None:
        self._data = options.data
        if not options.data:
            raise UsageError(
                "--data: not given; expected the corpus of the stores of conversations, which a "
                "student with another tokenizer sees in its own chat template; pass --data FILE"
            )
        check_template(tokenizer, options.student)
        self._columns = Columns(messages=options.messages_column, kind="messages")
        files = [list(read_records([file])) for file in options.data]
        self._records = {
            self._digest(records): records for records in [*files, [r for f in files for r in f]]
        }

    def _digest(self, records: list[Record]) -> str:
        return corpus_digest(iter(records), self._columns)[0]

    def of(self, store: TeacherStore) -> dict[str, Any]:
        """Arguments of `StudentTokens` for a store of conversations.

        Raises:
            IdentityError: the store was captured from another corpus.
        """
        identity = store.spec.identity
        records = self._records.get(identity["corpus"]["digest"])
        if records is None:
            most = max(map(len, self._records.values()))
            raise IdentityError(
                f"--data {' '.join(self._data)}: {most:,} records that are not those of the store "
                f"{store.name} ({identity['corpus']['num_records']:,} records, digest "
                f"{identity['corpus']['digest'][:12]}); expected the corpus that was captured; "
                "pass its files in the same order, beside those of the other stores"
            )
        chat = ChatOptions(turns=identity["text"].get("chat_turns", "all"))
        return {"records": records.__getitem__, "columns": self._columns, "chat": chat}


def _refuse_distribution(
    options: SpanOptions, stores: Sequence[TeacherStore], tokenizer: Any
) -> None:
    flag = options.student
    other = "cat-alm" if options.objective_name.startswith("cat") else "alm"
    try:
        for one in stores:
            check_vocabulary(tokenizer, one.spec, flag)
    except IdentityError as error:
        raise IdentityError(
            f"{error}; or pass --objective {other}, which matches likelihoods of spans of text"
        ) from None


def _check_store(store: TeacherStore, objective: Objective, name: str) -> None:
    """Refuse a store that lacks what the objective reads, or what tells replies from markup."""
    if store.spec.special_tokens is None:
        raise UsageError(
            f"--store {store.name}: an older version wrote it, without the teacher's special "
            "tokens; expected identity.vocabulary.special_ids, for a student with another "
            "tokenizer; capture it again, or pass a student with the teacher's tokenizer"
        )
    fields = store.spec.capture_fields
    for needed, field, wanted in (
        (objective.w < 1, "label", "exact"),
        (objective.rule in ("either", "teacher"), "argmax", "exact"),
    ):
        if needed and fields[field] != wanted:
            raise UsageError(
                f"--store {store.name}: capture.{field} is {fields[field]}; --objective {name} "
                f"expects {wanted}; pass --objective xent, or another store"
            )
    if objective.maps_topk and (store.spec.kind != TOPK.name or fields["tail"] == "unknown"):
        found = "samples" if store.spec.kind != TOPK.name else "a top-k whose tail is unknown"
        raise UsageError(
            f"--store {store.name}: holds {found}; --match bytes-1to1 expects a top-k and its tail "
            "mass; omit --match, or pass another store"
        )


def _check_eos(store: TeacherStore, tokenizer: Any, student: str) -> None:
    text = store.spec.identity["text"]
    if text["kind"] != "messages" and text["eos"] and tokenizer.eos_token_id is None:
        raise UsageError(
            f"{student}: its tokenizer has no EOS token, and the responses of "
            f"{store.name} end with one; expected eos_token in tokenizer_config.json; add it"
        )


def sample_alignment(
    store: StoreMix, tokens: Sequence[StudentTokens], order: MixedOrder, objective: Objective
) -> AlignmentStats:
    """Align the first examples of a run."""
    chosen = order.examples_for_step(0, min(SAMPLE, order.num_examples))
    found = read_spans(store, chosen, span_fields(objective), tokens)
    counts = np.zeros(10, np.int64)
    for example in found:
        counts[0] += 1
        if isinstance(example, LeftOut):
            counts[1 if example is LeftOut.OTHER_BYTES else 2] += 1
            continue
        aligned = example.aligned
        teacher, student = (
            np.bincount(span[span >= 0], minlength=aligned.num_spans)
            for span in (aligned.teacher_span, aligned.student_span)
        )
        pairs = len(aligned.one_to_one()[0])
        counts[3:7] += np.array([teacher.sum(), student.sum(), aligned.num_spans, pairs])
        longest = teacher.max(initial=0), student.max(initial=0), len(aligned.token_ids)
        counts[7:] = np.maximum(counts[7:], longest)
    return AlignmentStats(mapped_shares(found), *counts.tolist())


def longest_of_all(store: StoreMix, tokens: Sequence[StudentTokens]) -> int:
    """The student's tokens of the longest example; it tokenises all of them."""
    examples, longest = np.flatnonzero(store.row_counts()), 1
    for start in range(0, len(examples), _READ_TOGETHER):
        for number, batch, _ in store.read_apart(examples[start : start + _READ_TOGETHER], ()):
            longest = max(longest, *tokens[number].lengths(batch))
    return longest


def check_other_bytes(num_other: int, num_examples: int, allowed: float) -> None:
    """Stop a run in which too many examples have other bytes in the student's tokens.

    Args:
        num_other: examples with other bytes so far.
        num_examples: examples so far; fewer than `SAMPLE` count as so many.
        allowed: share of the examples.

    Raises:
        UsageError: more than the allowed share.
    """
    share = num_other / max(SAMPLE, num_examples)
    if share > allowed:
        counted = f"{share:.1%}" + (f" of {SAMPLE}" if num_examples < SAMPLE else "")
        raise UsageError(
            f"--student: {num_other:,} of {num_examples:,} examples ({counted}) have replies "
            "whose bytes the student's tokenizer or chat template changes, so that they teach "
            f"nothing; expected at most {allowed:.1%}; pass another student, or "
            f"--allow-other-bytes {min(1.0, share * 1.2 + 0.005):.2f}"
        )


def check_any_spans(stats: AlignmentStats) -> None:
    """Refuse a run whose sampled examples all teach nothing.

    Raises:
        UsageError: names why they were left out.
    """
    if stats.num_spans == 0:
        raise UsageError(
            f"--student: none of {stats.sample_line()}, so that the run would learn nothing; "
            "expected examples that fit the student; pass a student with more positions or another "
            "tokenizer, or a store of shorter examples"
        )


def span_lines(stats: AlignmentStats, *, shares_vocabulary: bool) -> Iterator[str]:
    """The lines of a plan."""
    yield f"spans        {stats.line()}"
    yield f"sample       {stats.sample_line()}"
    if stats.mapped:
        mass = stats.mapped["mapped_mass"] or 0.0
        yield (
            f"top-k        in {stats.mapped['mapped_spans']:.1%} of the spans; the student has "
            f"tokens for {mass:.1%} of the teacher's mass there"
        )
    if shares_vocabulary:
        yield (
            "note         the student has the teacher's vocabulary: dist and cat-dist use the "
            "teacher's whole top-k"
        )
