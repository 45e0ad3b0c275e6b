"""`caskd init`: survey a corpus, then write `caskd.toml` and `run.sh` with values that fit it."""

import json
import math
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import tyro

from caskd.cli.project.values import FILES, Project, script, tables, toml_text
from caskd.store.errors import UsageError
from caskd.store.io import check_room, claimed, counted, escape_control, files, tell

_SYSTEM = ("system", "developer")
HELD_OUT_SHARE, MOST_HELD_OUT = 0.1, 1_000


@dataclass(frozen=True, kw_only=True)
class InitConfig:
    """Write a config file and a script of the six commands for one's own data and models."""

    dir: tyro.conf.Positional[Path]
    """Folder to write caskd.toml and run.sh to; existing files are never overwritten."""
    data: tuple[str, ...]
    """Corpus files (.jsonl, .parquet, .arrow or .csv): prompt and response, or messages."""
    teacher: str
    """Large model of the cascade: a transformers folder, or a hub id."""
    student: str
    """Small model to train: a transformers folder, or a hub id."""
    test: tuple[str, ...] = ()
    """Files to measure the cascade on. Default: a tenth of --data, at most 1,000 examples, which
    DIR/train.jsonl then lacks."""
    prompt_column: str = "prompt"
    """Column of the prompt."""
    response_column: str = "response"
    """Column of the response."""
    messages_column: str = "messages"
    """Column of the conversation."""


def init_command(config: InitConfig) -> None:
    """Run `caskd init`.

    Raises:
        UsageError: a file is already there, or the data or a model cannot be used.
    """
    _check_new(config.dir, config)
    if config.test:
        _check_test(config)
    check_room(config.dir / FILES.config, "DIR")
    with claimed(config.dir, "DIR"):
        _check_new(config.dir, config)  # again: another may have written before this one held it
        _write(config.dir, config)


def _write(folder: Path, config: InitConfig) -> None:
    facts, shares_vocabulary = _survey(config)
    kind = facts["identity"]["text"]["kind"]
    if kind == "text" and not config.test:
        raise UsageError(
            "--data: holds plain text, to which no model can give an answer; expected prompt and "
            "response, or messages; pass --test FILE with these columns"
        )
    if config.test:
        data, test, num_held_out = config.data, config.test, 0
    else:
        data, test = (FILES.train,), (FILES.test,)
        num_held_out = hold_out(config, folder)
    project = Project(
        data=tuple(map(_from_anywhere, data)) if config.test else data,
        test=tuple(map(_from_anywhere, test)) if config.test else test,
        teacher=_from_anywhere(config.teacher),
        student=_from_anywhere(config.student),
        columns={
            name: getattr(config, name)
            for name in ("prompt_column", "response_column", "messages_column")
            if getattr(config, name) != name.partition("_")[0]
        },
        shares_vocabulary=shares_vocabulary,
        num_held_out=num_held_out,
    )
    folder.mkdir(parents=True, exist_ok=True)
    _create(folder / FILES.script, script(project), mode=0o755)
    _create(folder / FILES.config, toml_text(tables(project, facts)))
    if num_held_out:
        tell(
            f"held out {counted(num_held_out, 'example')} of --data: {folder / FILES.test}; "
            f"the rest is {folder / FILES.train}"
        )
    tell(f"wrote {folder / FILES.config} and {folder / FILES.script}")
    tell(f"next: read {folder / FILES.config}, then run {folder / FILES.script}")


def _check_new(folder: Path, config: InitConfig) -> None:
    # The script would take what is there for its own results.
    for name in FILES:
        if os.path.lexists(folder / name) and not (
            config.test and name in (FILES.train, FILES.test)
        ):
            raise UsageError(
                f"{folder / name}: already exists and is not overwritten; expected a folder "
                "without it; pass another folder, or remove the file"
            )


def _check_test(config: InitConfig) -> None:
    """Read the first record of the test files, and find its question and answer."""
    from caskd.store.corpus import Columns, decide_columns, read_records

    names = " ".join(config.test)
    first = next(iter(read_records(config.test)), None)
    if first is None:
        raise UsageError(f"--test {names}: no records; expected one or more; check the files")
    columns = Columns(config.prompt_column, config.response_column, config.messages_column)
    try:
        kind = decide_columns(first, columns).kind
    except UsageError as error:
        raise UsageError(f"--test {str(error).removeprefix('--data: ')}") from None
    if kind == "text":
        raise UsageError(
            f"--test {names}: holds plain text; expected prompt and response, or messages; pass "
            "--prompt-column and --response-column"
        )


def _survey(config: InitConfig) -> tuple[dict[str, Any], bool]:
    """The facts of a plan, and whether both models have the same tokens."""
    from caskd.models import open_tokenizer
    from caskd.precompute import PrecomputeConfig
    from caskd.precompute.planning import survey
    from caskd.store.corpus import token_bytes

    facts = survey(
        PrecomputeConfig(
            teacher=config.teacher,
            data=config.data,
            store=str(config.dir / FILES.store),
            prompt_column=config.prompt_column,
            response_column=config.response_column,
            messages_column=config.messages_column,
            top_k=1,  # of any vocabulary
            on_long="truncate",
            on_bad_chat="skip",
            on_out_of_vocabulary="skip",
            dry_run=True,
        )
    )
    models = ((config.student, "--student"), (config.teacher, "--teacher"))
    student, teacher = (open_tokenizer(*of) for of in models)
    return facts, token_bytes(student) == token_bytes(teacher)


def hold_out(config: InitConfig, folder: Path) -> int:
    """Divide the corpus into `train.jsonl` and `test.jsonl`, by a digest of each prompt.

    Records with equal prompts go to the same file.

    Returns:
        the number of held-out records.

    Raises:
        UsageError: the corpus is too small to divide.
    """
    digests = [digest_of_prompt(record, config) for record in _records(config)]
    wanted = min(max(1, math.ceil(len(digests) * HELD_OUT_SHARE)), MOST_HELD_OUT)
    border = sorted(digests)[wanted - 1]
    num_held_out = sum(digest <= border for digest in digests)
    if num_held_out == len(digests):
        raise UsageError(
            f"--data: holds {counted(len(digests), 'record')}, too few different prompts to hold "
            "some out; expected at least 2; pass --test FILE"
        )
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".init.", dir=folder) as drafts:
        train_path, test_path = Path(drafts, FILES.train), Path(drafts, FILES.test)
        with (
            train_path.open("x", encoding="utf-8") as train,
            test_path.open("x", encoding="utf-8") as test,
        ):
            for digest, record in zip(digests, _records(config), strict=True):
                file = test if digest <= border else train
                file.write(json.dumps(record, default=str) + "\n")
        files.rename(test_path, folder / FILES.test)
        files.rename(train_path, folder / FILES.train)
    return num_held_out


def _records(config: InitConfig) -> Iterator[dict[str, Any]]:
    from caskd.store.corpus import read_records

    return read_records(config.data)


def digest_of_prompt(record: dict[str, Any], config: InitConfig) -> bytes:
    """Digest of what a model is asked."""
    messages = record.get(config.messages_column) or record.get("conversations")
    if isinstance(messages, list):
        asked: Any = _first_question(messages)
    else:
        asked = record.get(config.prompt_column)
    return blake2b(json.dumps(asked, default=str).encode(), digest_size=8).digest()


def _first_question(messages: list[Any]) -> list[Any]:
    """The messages up to the first one that is not of the system, which many records share."""
    roles = [
        (one.get("role") or one.get("from")) if isinstance(one, dict) else None for one in messages
    ]
    num_system = next((i for i, role in enumerate(roles) if role not in _SYSTEM), len(roles))
    return messages[: num_system + 1]


def _from_anywhere(name: str) -> str:
    """A file or folder by its absolute path; hub ids and URLs stay."""
    path = Path(name)
    is_pattern = "://" not in name and any(letter in name for letter in "*?[")
    return str(path.resolve()) if path.exists() or is_pattern else name


def _create(path: Path, text: str, mode: int = 0o644) -> None:
    if not files.create_exclusive(path, text.encode()):
        raise UsageError(
            f"{escape_control(str(path))}: appeared meanwhile and is not overwritten; expected no "
            "such file; pass another folder"
        )
    path.chmod(mode)
