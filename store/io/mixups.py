"""Recognise a folder or file of another kind than the one a flag takes.

A folder is recognised by the names in it alone, so that a stranger's is not opened.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from caskd.store.errors import UsageError


@dataclass(frozen=True)
class _Kind:
    """What one is called, the names that mark its folder, and what to do with one."""

    noun: str
    marks: tuple[str, ...]
    advice: str


_EXPORT = "caskd export {path} MODEL writes its model"
_KINDS = {
    "store": _Kind(
        "a teacher store",
        ("store.json",),
        "caskd train --store {path} trains from it, caskd store info {path} shows it",
    ),
    "run": _Kind("a training run", ("config.json", "metrics.jsonl"), _EXPORT),
    "checkpoint": _Kind("a checkpoint of a training run", ("state.json", "weights"), _EXPORT),
    "adapter": _Kind(
        "a peft adapter",
        ("adapter_config.json",),
        "caskd precompute takes it as --adapter; for a whole model run caskd export RUN MODEL "
        "without --adapter",
    ),
    "report": _Kind(
        "a report of caskd eval",
        ("index.html", "summary.json"),
        "open {path}/index.html; it was made from the .parquet files of caskd predict",
    ),
    "parts": _Kind(
        "the unfinished parts of a predictions file",
        ("request.json",),
        "run that caskd predict again to finish it",
    ),
    "model": _Kind(
        "a model",
        ("config.json",),
        "caskd predict --model {path} writes its answers; caskd precompute takes it as --teacher, "
        "caskd train as --student",
    ),
    "predictions": _Kind(
        "a predictions file of caskd predict", (), "caskd eval takes it as --small or --large"
    ),
    "data": _Kind(
        "a data file",
        (),
        "caskd precompute and caskd predict take it as --data, caskd eval as --outcomes if it is "
        "an outcome table",
    ),
}
"""In the order in which they are tried: a run holds a config.json too."""
_MODEL_FILES = (".safetensors", ".bin", ".gguf", "tokenizer.json", "tokenizer_config.json")
DATA_ENDINGS = (".jsonl", ".parquet", ".arrow", ".csv")


def kind_of(path: str | Path) -> str | None:
    """The kind of the folder or file at `path`; None if it is of no known kind."""
    try:
        names = set(os.listdir(path))
    except NotADirectoryError:
        if Path(path).suffix.lower() not in DATA_ENDINGS:
            return None
        return "predictions" if is_predictions(path) else "data"
    except OSError:
        return None
    marked = (kind for kind, it in _KINDS.items() if it.marks and names.issuperset(it.marks))
    kind = next(marked, None)
    if kind == "model" and not any(name.endswith(_MODEL_FILES) for name in names):
        return None  # perhaps a run that was killed at once
    return kind


def is_predictions(path: str | Path) -> bool:
    """Whether the file at `path` is a predictions file, by the metadata in its Parquet footer."""
    if Path(path).suffix.lower() != ".parquet" or not Path(path).is_file():
        return False
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        metadata = pq.read_schema(path).metadata or {}
    except (pa.ArrowException, OSError, ValueError):  # damaged names are no UTF-8
        return False
    return b'"caskd-predictions"' in metadata.get(b"caskd", b"")


def mixup(path: str | Path, wanted: str) -> str | None:
    """What is at `path`, what was expected and the command for it; None if nothing is mixed up."""
    kind = kind_of(path)
    if kind is None or kind == wanted:
        return None
    advice = _KINDS[kind].advice.format(path=path)
    return f"is {_KINDS[kind].noun}; expected {_KINDS[wanted].noun}; {advice}"


def refuse_occupied(path: str | Path, subject: str, *, reused: str) -> None:
    """Refuse a folder for new results that holds something of another kind than `reused`.

    Raises:
        UsageError: says what it holds.
    """
    kind = kind_of(path)
    if kind is not None and kind != reused:
        raise UsageError(
            f"{subject}: is {_KINDS[kind].noun}; expected a new or empty folder; pass another one"
        )


def refuse_mixup(path: str | Path, subject: str, wanted: str) -> None:
    """Refuse a folder or file of another kind.

    Args:
        path: as the user gave it.
        subject: how errors name it, such as `--model MODEL`.
        wanted: the kind that is expected, a key of `_KINDS`.

    Raises:
        UsageError: says what it is, and the command for it.
    """
    found = mixup(path, wanted)
    if found is not None:
        raise UsageError(f"{subject}: {found}")
