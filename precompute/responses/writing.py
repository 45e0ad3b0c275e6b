"""Write answers to every record of a corpus, in parts that a kill cannot lose and workers share."""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from caskd.models.decoding import Sampling
from caskd.precompute.responses.questions import (
    TEXT_DIFFERS,
    answered,
    question_columns,
    questions_digest,
)
from caskd.store.commits import FileParts, difference_text
from caskd.store.corpus import Columns, Record, read_records, text_columns
from caskd.store.errors import IdentityError, UsageError, given_without
from caskd.store.io import check_room, files, parse_json, progress, read_json_object, tell

DEFAULT_NEW_TOKENS = 512
MAX_PARTS = 1000
RETOKENIZED, LENGTH_DIFFERS = "retokenized", "length_differs"
"""Counts of answers: with the text that was generated and other tokens, and with another number of
tokens than a server counted."""


class AnswersConfig(Protocol):
    """The options of a command that writes answers."""

    @property
    def data(self) -> tuple[str, ...]: ...
    @property
    def columns(self) -> Columns: ...
    @property
    def on_bad_text(self) -> Any: ...
    @property
    def chat_template(self) -> str | None: ...
    @property
    def template_arguments(self) -> str | None: ...
    @property
    def train_template_tokens(self) -> bool: ...
    @property
    def temperature(self) -> float | None: ...
    @property
    def seed(self) -> int | None: ...
    @property
    def max_new_tokens(self) -> int | None: ...
    @property
    def worker(self) -> int | None: ...
    @property
    def num_workers(self) -> int: ...


@dataclass(frozen=True)
class Response:
    """An answer."""

    text: str
    finished: bool
    """Whether it ended by itself, not at the limit or by a refusal."""
    refused: bool = False
    counts: Mapping[str, int] = field(default_factory=dict)
    """Further numbers, which are summed over all answers."""


class Answering(Protocol):
    """What answers the records of a corpus."""

    identity: dict[str, Any]
    """What the answers depend on, in JSON types, beside the questions."""
    batches: list[list[int]]
    """Records that are answered together."""

    def answers(self, batches: Iterable[Sequence[int]]) -> Iterator[list[Response]]:
        """The answers of each batch, in the order of its records."""


Opening = Callable[[Sequence[Record], Columns, int], AbstractContextManager[Answering]]
"""Opens what answers, from the records, their columns and the tokens that an answer may have."""


@dataclass(frozen=True)
class Target:
    """The file to write."""

    out: Path
    flag: str
    """The option that named it, for errors."""
    what: str
    """The command, for errors."""


def sampling_of(config: AnswersConfig) -> Sampling | None:
    """How tokens are drawn; None for the likeliest each time."""
    return Sampling(config.temperature, config.seed or 0) if config.temperature else None


def check_answers(config: AnswersConfig, target: Target) -> None:
    """Refuse numbers out of bounds and a name that is not one of JSONL, before any work.

    Raises:
        UsageError: names the flag and what to do.
    """
    heat = config.temperature
    if heat is not None and not (0.0 < heat < math.inf):
        raise UsageError(
            f"--temperature {heat:g}: expected a number above 0; omit it for the likeliest tokens"
        )
    if config.seed is not None and heat is None:
        raise UsageError(given_without(f"--seed {config.seed}", "--temperature 1"))
    if config.max_new_tokens is not None and config.max_new_tokens < 1:
        raise UsageError(
            f"--max-new-tokens {config.max_new_tokens}: expected 1 or more; pass another number"
        )
    if not 0 <= (config.worker or 0) < config.num_workers:
        raise UsageError(
            f"--worker {config.worker} with --num-workers {config.num_workers}: expected 0 to "
            f"{config.num_workers - 1}; pass another number"
        )
    if target.out.suffix != ".jsonl":
        raise UsageError(
            f"{target.flag} {target.out}: expected a name that ends in .jsonl; rename it"
        )
    check_room(target.out, target.flag)


def write_answers(
    config: AnswersConfig, target: Target, opening: Opening
) -> Mapping[str, int] | None:
    """Write answers to all records as a JSONL corpus, or those of this worker.

    Returns:
        Counts of the answers; None while parts of other workers are missing.

    Raises:
        UsageError: the data or a model cannot be used.
        IdentityError: existing parts, or a finished file, belong to another request.
        ServerError: a server does not answer.
    """
    out = target.out
    wanted = text_columns(config.columns) | {"id"}
    records = list(read_records(config.data, wanted, config.on_bad_text))
    columns = question_columns(records[0], config.columns)
    limit = config.max_new_tokens or DEFAULT_NEW_TOKENS
    with opening(records, columns, limit) as answering:
        size = -(-len(answering.batches) // MAX_PARTS)
        starts = range(0, len(answering.batches), size)
        plan = [answering.batches[start : start + size] for start in starts]
        request = _request(config, records, columns, limit, answering)
        parts = _ResponseParts(target, request, len(plan))
        _answer_missing(config, records, columns, plan, parts, answering)
    counts = parts.join()
    if counts is None:
        left = len(parts.missing())
        tell(f"{out}: {left:,} of {len(plan):,} parts are missing; the last worker joins them")
        return None
    tell(
        f"{out}: {counts['answers']:,} answers, {counts['finished']:,} finished, "
        f"{counts['cut']:,} cut at --max-new-tokens {limit:,}, {counts['refused']:,} refused, "
        f"{counts['empty']:,} empty"
    )
    for line in _difference_lines(out, counts):
        tell(line)
    return counts


def _difference_lines(out: Path, counts: Mapping[str, int]) -> Iterator[str]:
    """What a capture of the answers will read that is not what was generated."""
    if differs := counts.get(TEXT_DIFFERS, 0):
        yield (
            f"{out}: {differs:,} answers have another text than was generated: a text holds no "
            "special tokens, the chat template may change white space, and a server may give "
            f"reasoning apart; a capture is of that text; those records have {TEXT_DIFFERS}: true"
        )
    if other := counts.get(RETOKENIZED, 0):
        yield (
            f"{out}: {other:,} answers have the text that was generated, and other tokens: the "
            "tokenizer divides that text in another way"
        )
    if lengths := counts.get(LENGTH_DIFFERS, 0):
        yield (
            f"{out}: {lengths:,} answers have another number of tokens than the server counted: "
            "special tokens are missing in their texts, or the tokenizer divides them in another "
            "way"
        )


def _request(
    config: AnswersConfig,
    records: Sequence[Record],
    columns: Columns,
    limit: int,
    answering: Answering,
) -> dict[str, Any]:
    """What the answers are made from; the parts of one file agree in all of it."""
    drawn = sampling_of(config)
    return {
        "format": "caskd-responses",
        "version": 2,
        **answering.identity,
        "decoding": {
            "strategy": "greedy" if drawn is None else "sample",
            "temperature": 0.0 if drawn is None else drawn.temperature,
            "seed": None if drawn is None else drawn.seed,
            "max_new_tokens": limit,
        },
        "num_batches": len(answering.batches),
        "columns": {**vars(columns)},
        "data_digest": questions_digest(records, columns),
    }


def _answer_missing(
    config: AnswersConfig,
    records: Sequence[Record],
    columns: Columns,
    plan: Sequence[Sequence[Sequence[int]]],
    parts: "_ResponseParts",
    answering: Answering,
) -> None:
    worker = config.worker or 0
    missing = parts.missing(worker, config.num_workers)
    sizes = [sum(map(len, part)) for part in plan]
    total, left = sum(sizes[worker :: config.num_workers]), sum(sizes[p] for p in missing)
    if left < total:
        tell(f"{parts.out}: {total - left:,} of {total:,} records are already answered")
    found = answering.answers(batch for part in missing for batch in plan[part])
    with progress("answer", total, "records", done=total - left) as shown:
        for part in missing:
            rows: list[tuple[int, Response]] = []
            for batch in plan[part]:
                rows += zip(batch, next(found), strict=True)
                shown.advance(len(batch))
            parts.write_part(part, _part_bytes(records, columns, rows))


def _part_bytes(
    records: Sequence[Record], columns: Columns, rows: Sequence[tuple[int, Response]]
) -> bytes:
    """A part: one line for each answer, with the number of its record."""
    lines = [
        {
            "index": index,
            "refused": response.refused,
            "empty": not response.text.strip(),
            **({"counts": dict(response.counts)} if response.counts else {}),
            "record": {
                **answered(records[index], columns, response.text, response.finished),
                **({TEXT_DIFFERS: True} if response.counts.get(TEXT_DIFFERS) else {}),
            },
        }
        for index, response in rows
    ]
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()


class _ResponseParts(FileParts):
    """The parts of one file of answers; FILE.request.json stays beside it."""

    suffix = ".jsonl"

    def __init__(self, target: Target, request: Mapping[str, Any], num_parts: int) -> None:
        """As `FileParts`."""
        self.what, self._named = target.what, f"{target.flag} {target.out}"
        super().__init__(target.out, request, num_parts)

    @property
    def kept_request(self) -> Path:
        """What the finished file was made from, with the counts of its answers."""
        return self.out.with_name(self.out.name + ".request.json")

    def is_finished(self) -> bool:
        """Whether the whole file exists.

        Raises:
            IdentityError: it belongs to another request.
            UsageError: it is no file of answers.
        """
        if not self.out.exists():
            return False
        try:
            theirs = read_json_object(self.kept_request)
        except (OSError, ValueError):
            raise UsageError(
                f"{self._named}: exists, and no {self.kept_request.name} says what made it; "
                "expected a new file; remove it or choose another name"
            ) from None
        theirs = {name: value for name, value in theirs.items() if name != "counts"}
        difference = next(self.differences(theirs), None)
        if difference is not None:
            raise IdentityError(
                f"{self._named}: belongs to another request, {difference_text(difference)}; "
                "expected a new file; remove it or choose another name"
            )
        return True

    def join(self) -> Mapping[str, int] | None:
        """Write the whole file once every part is finished, and remove the parts.

        Returns:
            Counts of the answers, or None while parts are missing.
        """
        if not self.out.exists():
            if self.missing():
                return None
            try:
                lines = sorted(self._lines(), key=lambda line: line["index"])
            except FileNotFoundError:
                return self._counts()  # another worker was faster
            kept = {**self._request, "counts": _count(lines)}
            content = json.dumps(kept, indent=1, sort_keys=True).encode()
            files.replace_file(self.kept_request, content)
            text = "".join(json.dumps(line["record"], ensure_ascii=False) + "\n" for line in lines)
            files.create_exclusive(self.out, text.encode(), scratch=self.folder)
        files.remove_tree(self.folder)
        return self._counts()

    def _lines(self) -> Iterator[dict[str, Any]]:
        for part in range(self.num_parts):
            for line in self.path(part).read_bytes().splitlines():
                yield parse_json(line)

    def _counts(self) -> Mapping[str, int]:
        counts: Mapping[str, int] = read_json_object(self.kept_request)["counts"]
        return counts


def _count(lines: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    finished = sum(line["record"]["finished"] for line in lines)
    refused = sum(line["refused"] for line in lines)
    further: dict[str, int] = {}
    for line in lines:
        for name, count in line.get("counts", {}).items():
            further[name] = further.get(name, 0) + count
    return {
        "answers": len(lines),
        "finished": finished,
        "refused": refused,
        "cut": len(lines) - finished - refused,
        "empty": sum(line["empty"] for line in lines),
        **further,
    }
