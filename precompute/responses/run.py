"""Answer every record of a corpus, in parts that a kill cannot lose and workers can share."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from caskd.precompute.backend_flags import check_backend
from caskd.precompute.command import PrecomputeCommand
from caskd.precompute.config import check_numbers
from caskd.precompute.responses.answering import Answering, Response, open_answering, sampling_of
from caskd.precompute.responses.questions import answered, question_columns, questions_digest
from caskd.store.commits import FileParts, difference_text
from caskd.store.corpus import Columns, Record, read_records, text_columns
from caskd.store.errors import IdentityError, UsageError
from caskd.store.io import check_room, files, parse_json, progress, read_json_object, tell

DEFAULT_NEW_TOKENS = 512
MAX_PARTS = 1000
_FLAG = "--sample-responses"


def sample_responses(config: PrecomputeCommand, file: str) -> None:
    """Write the teacher's answers as a JSONL corpus, or those of this worker.

    Answers are the same for any number of workers and after any kill; they depend on batches only
    through the rounding of the kernels.

    Raises:
        UsageError: a flag, the data or the teacher cannot be used.
        IdentityError: existing parts, or a finished file, belong to another request.
        ServerError: a server does not answer.
    """
    out = Path(file)
    _check(config, out)
    wanted = text_columns(config.columns) | {"id"}
    records = list(read_records(config.data, wanted, config.on_bad_text))
    columns = question_columns(records[0], config.columns)
    limit = config.max_new_tokens or DEFAULT_NEW_TOKENS
    with open_answering(config, records, columns, limit) as answering:
        size = -(-len(answering.batches) // MAX_PARTS)
        starts = range(0, len(answering.batches), size)
        plan = [answering.batches[start : start + size] for start in starts]
        request = _request(config, records, columns, limit, answering)
        parts = _ResponseParts(out, request, len(plan))
        _answer_missing(config, records, columns, plan, parts, answering)
    counts = parts.join()
    if counts is None:
        left = len(parts.missing())
        tell(f"{out}: {left:,} of {len(plan):,} parts are missing; the last worker joins them")
        return
    tell(
        f"{out}: {counts['answers']:,} answers, {counts['finished']:,} finished, "
        f"{counts['cut']:,} cut at --max-new-tokens {limit:,}, {counts['refused']:,} refused, "
        f"{counts['empty']:,} empty"
    )
    tell(f"next: caskd precompute --teacher TEACHER --data {out} --store STORE")


def _check(config: PrecomputeCommand, out: Path) -> None:
    """Refuse flags that answers do not have, before any work.

    Raises:
        UsageError: names the flag and what to do.
    """
    refused = {
        "--store": bool(config.store),
        "--sample": config.sample is not None,
        "--head": config.head is not None,
        "--top-k": config.top_k is not None,
        "--min-mass": config.min_mass is not None,
        "--adapter": config.adapter is not None,
        "--attention": config.attention != "auto",
        "--device-map": config.device_map is not None,
        "--deterministic": config.deterministic,
        "--dry-run": config.dry_run,
        f"--executor {config.executor}": config.executor != "local",
    }
    for flag, given in refused.items():
        if given:
            raise UsageError(
                f"{_FLAG} and {flag}: both were given; expected one of them, answers are a corpus "
                f"and no store; omit {flag}, and capture {out} afterwards"
            )
    if not config.teacher and not (config.backend == "server" and config.api == "chat"):
        raise UsageError("--teacher: missing; expected a folder or a hub id; pass --teacher ID")
    _check_runner(config)
    _check_draws(config)
    check_numbers(config)
    if out.suffix != ".jsonl":
        raise UsageError(f"{_FLAG} {out}: expected a name that ends in .jsonl; rename it")
    check_room(out, _FLAG)


def _check_runner(config: PrecomputeCommand) -> None:
    """Refuse flags that have no meaning for what answers."""
    check_backend(config)
    rendered_there = config.api == "chat" and config.backend == "server"
    refused = {
        "--api chat": (config.api == "chat" and not rendered_there, "without --backend server"),
        f"--tensor-parallel {config.tensor_parallel}": (
            config.tensor_parallel != 1 and config.backend != "vllm",
            f"with {_FLAG} and --backend {config.backend}, whose model runs on one device",
        ),
        "--chat-template": (rendered_there and config.chat_template is not None, "with --api chat"),
        "--train-template-tokens": (
            rendered_there and config.train_template_tokens,
            "with --api chat",
        ),
    }
    for flag, (given, why) in refused.items():
        if given:
            raise UsageError(f"{flag}: was given {why}; expected one of the two; omit {flag}")


def _check_draws(config: PrecomputeCommand) -> None:
    heat = config.temperature
    if heat is not None and not (0.0 < heat < math.inf):
        raise UsageError(
            f"--temperature {heat:g}: expected a number above 0; omit it for the likeliest tokens"
        )
    if config.seed is not None and heat is None:
        raise UsageError(
            f"--seed {config.seed}: was given without --temperature; expected both or neither; add "
            "--temperature 1"
        )
    if config.max_new_tokens is not None and config.max_new_tokens < 1:
        raise UsageError(
            f"--max-new-tokens {config.max_new_tokens}: expected 1 or more; pass another number"
        )
    if not 0 <= (config.worker or 0) < config.num_workers:
        raise UsageError(
            f"--worker {config.worker} with --num-workers {config.num_workers}: expected 0 to "
            f"{config.num_workers - 1}; pass another number"
        )


def _request(
    config: PrecomputeCommand,
    records: Sequence[Record],
    columns: Columns,
    limit: int,
    answering: Answering,
) -> dict[str, Any]:
    """What the answers are made from; the parts of one file agree in all of it."""
    drawn = sampling_of(config)
    return {
        "format": "caskd-responses",
        "version": 1,
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
    config: PrecomputeCommand,
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
            "record": answered(records[index], columns, response.text, response.finished),
        }
        for index, response in rows
    ]
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()


class _ResponseParts(FileParts):
    """The parts of one file of answers; FILE.request.json stays beside it."""

    suffix = ".jsonl"
    what = "caskd precompute --sample-responses"

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
                f"{_FLAG} {self.out}: exists, and no {self.kept_request.name} says what made it; "
                "expected a new file; remove it or choose another name"
            ) from None
        theirs = {name: value for name, value in theirs.items() if name != "counts"}
        difference = next(self.differences(theirs), None)
        if difference is not None:
            raise IdentityError(
                f"{_FLAG} {self.out}: belongs to another request, {difference_text(difference)}; "
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
    return {
        "answers": len(lines),
        "finished": finished,
        "refused": refused,
        "cut": len(lines) - finished - refused,
        "empty": sum(line["empty"] for line in lines),
    }
