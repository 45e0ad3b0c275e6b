"""Small captures for tests: their configuration, their processes, and the bytes under the seal."""

import os
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from caskd.cli.main import main
from caskd.precompute import PrecomputeConfig
from helpers.tiny import ragged_records, write_jsonl

RECORDS = ragged_records(40, seed=3)
TOP_K = 8


def config_for(
    teacher: Path, folder: Path, records: Iterable[Mapping[str, Any]] = RECORDS, **changes: Any
) -> PrecomputeConfig:
    """A capture of `records` into `folder`/store, several shards of it."""
    data = write_jsonl(folder / "data.jsonl", records)
    base = {
        "teacher": str(teacher), "data": (str(data),), "store": str(folder / "store"),
        "top_k": TOP_K, "shard_rows": 128, "token_budget": 200, "device": "cpu",
        "encoding": "exact",
    }  # fmt: skip
    return PrecomputeConfig(**{**base, **changes})


def served_config(teacher: Path, folder: Path, *urls: str, **changes: Any) -> PrecomputeConfig:
    """The same capture from servers at these URLs."""
    folder.mkdir(exist_ok=True)
    options = {"backend": "server", "url": urls, "device": "auto", **changes}
    return config_for(teacher, folder, **options)


def sealed_files(store: str) -> dict[str, bytes]:
    """Everything that the seal covers."""
    root = Path(store)
    files = [file for file in root.rglob("*") if file.is_file() and file.name != "README.md"]
    return {
        str(file.relative_to(root)): file.read_bytes()
        for file in files
        if "environment" not in file.parts
    }


def words_for(config: PrecomputeConfig) -> list[str]:
    """The command line that gives `config`."""
    words = ["precompute"]
    for field in fields(config):
        value, flag = getattr(config, field.name), "--" + field.name.replace("_", "-")
        if value == field.default:
            continue
        if isinstance(value, bool):
            words.append(flag if value else "--no-" + flag[2:])
        else:
            words += [flag, *map(str, value if isinstance(value, tuple) else (value,))]
    return words


def fork_caskd(words: list[str], log: Path, prepare: Callable[[], object] = lambda: None) -> int:
    """`caskd WORDS` in a fork of this process, whose imports are behind it; returns its id.

    Args:
        words: of the command line.
        log: gets what it prints, behind what is there.
        prepare: runs in the child first.
    """
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        with log.open("a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        prepare()
        code = main(words)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def outcome(child: int) -> int:
    """How a child ended: its exit code, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
