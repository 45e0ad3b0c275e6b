"""What `caskd init` writes: the values that fit a surveyed corpus, as TOML, and the script.

Pure functions of the survey. Values that are measured from the data carry the measurement in their
comment; the others are starting values, and their comments call them so.
"""

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

GLOBAL_BATCH_SIZE = 32
NUM_EPOCHS = 3
TOKENS_PER_FORWARD = 4096
SMALL_CORPUS_ROWS, SMALL_SHARD_ROWS = 65_536, 8_192


class Files(NamedTuple):
    """Names in the folder."""

    config: str = "caskd.toml"
    script: str = "run.sh"
    train: str = "train.jsonl"
    test: str = "test.jsonl"
    store: str = "store"
    run: str = "run"
    model: str = "student"
    small: str = "small.parquet"
    large: str = "large.parquet"
    report: str = "report"


FILES = Files()


@dataclass(frozen=True)
class Project:
    """The models and data of a project; local paths are absolute or in its folder.

    Attributes:
        columns: columns of the data that have other names, by flag.
        shares_vocabulary: both models have the same tokens.
        num_held_out: examples that were divided from the data for the test.
    """

    data: tuple[str, ...]
    test: tuple[str, ...]
    teacher: str
    student: str
    columns: Mapping[str, str]
    shares_vocabulary: bool
    num_held_out: int


class Line(NamedTuple):
    """One line of a table: a key, its value, and why it has that value."""

    key: str
    value: Any
    comment: str = ""


Tables = Mapping[str, Sequence[Line]]


def tables(project: Project, facts: Mapping[str, Any]) -> Tables:
    """The tables of the config file.

    Args:
        project: its models and data.
        facts: of the survey, as `caskd plan --json` prints them.
    """
    capture = _capture(project, facts)
    return {
        "plan": capture,
        "precompute": capture,
        "train": _train(project, facts),
        "export": [Line("checkpoint", FILES.run), Line("out", FILES.model)],
        "predict": _predict(project, facts),
        "eval": [
            Line("small", [f"student={FILES.small}"]),
            Line("large", FILES.large),
            Line("out", FILES.report),
        ],
    }


def _capture(project: Project, facts: Mapping[str, Any]) -> list[Line]:
    examples, vocabulary = facts["examples"], facts["identity"]["vocabulary"]["size"]
    longest = facts["identity"]["text"]["max_length"]
    rows = facts["geometry"]["num_rows"]
    lines = [
        Line("teacher", project.teacher),
        Line("data", list(project.data)),
        Line("store", FILES.store),
        *(Line(name.replace("_", "-"), column) for name, column in project.columns.items()),
        Line("top-k", min(64, facts["teacher"]["num_ids"], vocabulary), "logits kept per token"),
    ]
    if rows < SMALL_CORPUS_ROWS:
        lines.append(Line("shard-rows", SMALL_SHARD_ROWS, f"the data has {rows:,} response tokens"))
    if examples.get("truncated"):
        found = f"{examples['truncated']:,} examples exceed the teacher's {longest:,} tokens"
        lines.append(Line("on-long", "truncate", f"{found}; skip leaves them out"))
    if examples.get("chat_refused"):
        found = f"the chat template refuses {examples['chat_refused']:,} conversations"
        lines.append(Line("on-bad-chat", "skip", found))
    if examples.get("out_of_vocabulary"):
        found = f"{examples['out_of_vocabulary']:,} examples have a token outside the vocabulary"
        lines.append(Line("on-out-of-vocabulary", "skip", found))
    if facts["duplicates"]["examples"]:
        found = f"{facts['duplicates']['examples']:,} examples repeat an earlier one"
        lines.append(Line("on-duplicate", "skip", found))
    return lines


def micro_batch_size(longest: int) -> int:
    """Examples of a forward: the largest power of two with at most 4,096 tokens, from 1 to 32."""
    fitting = max(1, TOKENS_PER_FORWARD // max(1, longest))
    return int(min(GLOBAL_BATCH_SIZE, 2 ** int(math.log2(fitting))))


def _train(project: Project, facts: Mapping[str, Any]) -> list[Line]:
    num_examples = facts["geometry"]["num_examples"] - project.num_held_out
    steps = max(10, math.ceil(NUM_EPOCHS * num_examples / GLOBAL_BATCH_SIZE))
    longest = facts["lengths"]["total"]["p99"]
    objective = "cat-xent" if project.shares_vocabulary else "xent"
    why = (
        "measured: its cascades are above those of xent, its baseline"
        if project.shares_vocabulary
        else "measured: of a student with other tokens than the teacher, no other was better"
    )
    is_chat = facts["identity"]["text"]["kind"] == "messages"
    other = [
        Line("teacher-tokenizer", project.teacher, "the store lacks its EOS and template"),
        *([Line("data", list(project.data), "rendered by the student's template")] * is_chat),
    ]
    return [
        Line("store", [FILES.store]),
        Line("student", project.student),
        Line("out", FILES.run),
        Line("objective", objective, why),
        *(other if not project.shares_vocabulary else []),
        Line("steps", steps, f"starting value: {NUM_EPOCHS} passes over {num_examples:,} examples"),
        Line("global-batch-size", GLOBAL_BATCH_SIZE, "starting value"),
        Line(
            "micro-batch-size", micro_batch_size(longest),
            f"99 % of the examples have at most {longest:,} tokens; halve it if memory runs out",
        ),
        Line("lr", 2e-5, "starting value, of a pretrained student"),
        Line("warmup-steps", steps // 20, "starting value"),
        Line("save-every", max(1, steps // 4), "a stopped run resumes from the newest"),
    ]  # fmt: skip


def _predict(project: Project, facts: Mapping[str, Any]) -> list[Line]:
    longest = facts["lengths"]["response"]["p99"]
    most = min(1024, 16 * math.ceil((1.25 * longest + 1) / 16))
    return [
        Line("data", list(project.test)),
        *(Line(name.replace("_", "-"), column) for name, column in project.columns.items()),
        Line(
            "max-new-tokens", most,
            f"99 % of the responses have at most {longest:,} tokens",
        ),
        Line("batch-size", 16),
    ]  # fmt: skip


_HEAD = """\
# One table per command of caskd: caskd COMMAND --config caskd.toml. A key is a flag, and flags of
# the command line win. caskd COMMAND --help explains every flag. Relative paths start in the folder
# in which a command runs; run.sh runs every command in its own folder.
"""
_ABOUT = {
    "plan": "tokenises the data and plans the store; reads no weights",
    "precompute": "runs the teacher once; the values of [plan], which the store holds it to",
    "train": "trains the student from the store, without the teacher",
    "export": "writes the trained student as a transformers model",
    "predict": "answers the test examples; run.sh passes --model and --out for each of both models",
    "eval": "quality against cost of the cascade, at every threshold",
}


def toml_text(of_commands: Tables) -> str:
    """The config file."""
    parts = [_HEAD]
    for name, lines in of_commands.items():
        parts.append(f"\n# {_ABOUT[name]}\n[{name}]\n")
        for line in lines:
            comment = f"  # {line.comment}" if line.comment else ""
            parts.append(f"{line.key} = {toml_value(line.value)}{comment}\n")
    return "".join(parts)


def toml_value(value: Any) -> str:
    """A value in TOML: a text, a number or a list of them."""
    if isinstance(value, list):
        return f"[{', '.join(map(toml_value, value))}]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)


def script(project: Project) -> str:
    """The script of the six commands; run again after a stop, it goes on."""
    teacher = shlex.quote(project.teacher)
    return f"""#!/bin/sh
# The whole chain of caskd with the values of {FILES.config}. Stopped, it goes on where it was.
set -eu
CDPATH= cd -- "$(dirname -- "$0")"

caskd plan --config {FILES.config}
caskd precompute --config {FILES.config}

if [ ! -d {FILES.model} ]; then
    if [ -f {FILES.run}/config.json ]; then resume=--resume; else resume=--no-resume; fi
    caskd train --config {FILES.config} "$resume"
    caskd export --config {FILES.config}
fi

caskd predict --config {FILES.config} --model {FILES.model} --out {FILES.small}
caskd predict --config {FILES.config} --model {teacher} --out {FILES.large}
caskd eval --config {FILES.config}
"""
