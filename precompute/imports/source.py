"""What every format gives: a stream of examples, and what its values are."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from caskd.precompute.imports.examples import ForeignExample
from caskd.store.errors import UsageError

PICKLED = (".pt", ".pth", ".pkl", ".pickle", ".bin", ".ckpt")


@dataclass(frozen=True)
class Source:
    """The examples of a source, in its own order."""

    examples: Iterator[ForeignExample]
    precision: str
    """Dtype of the values, as far as the source tells."""
    has_tail: bool = True
    """Values are normalised over the vocabulary, so that the rest of a row's mass is its tail."""


@dataclass(frozen=True)
class Reading:
    """What a reader knows beside its source: the tokenizer, and how an example is padded."""

    tokenizer: Any
    pad_id: int | None
    pad_is_eos: bool

    @classmethod
    def of(cls, tokenizer: Any, *, pad_is_eos: bool) -> "Reading":
        """Of a tokenizer.

        Raises:
            UsageError: `pad_is_eos`, but they are two tokens.
        """
        eos = tokenizer.eos_token_id
        pad = eos if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        if pad_is_eos and (pad is None or pad != eos):
            raise UsageError(
                f"--pad-is-eos: the tokenizer's pad token has id {pad}, its EOS {eos}; expected "
                "one token; omit --pad-is-eos"
            )
        return cls(tokenizer, pad, pad_is_eos)

    def num_kept(self, token_ids: npt.NDArray[np.int64]) -> int:
        """Tokens of an example without the pad token that ends it."""
        padded = len(token_ids) > 0 and token_ids[-1] == self.pad_id and not self.pad_is_eos
        return len(token_ids) - int(padded)


def source_error(source: str, problem: str, expected: str) -> UsageError:
    """The error of a source that cannot be read."""
    return UsageError(f"{source}: {problem}; expected {expected}; check SOURCE and FORMAT")


def regular_files(source: str, suffix: str) -> list[Path]:
    """The files of a folder whose names end so, or the one file, in the order of their names.

    Raises:
        UsageError: one is a pipe, a broken link or a folder: it would be waited for, or lost.
    """
    path = Path(source)
    files = sorted(path.glob(f"*{suffix}")) if path.is_dir() else [path]
    for file in files:
        if not file.is_file():
            raise source_error(str(file), "is no regular file", "one that can be read to its end")
    return files


def refuse_pickles(source: str) -> None:
    """Refuse files whose loading would run code.

    Raises:
        UsageError: the source is such a file, or a folder of nothing else.
    """
    path = Path(source)
    names = [path.name]
    if path.is_dir():
        names = sorted(one.name for one in path.iterdir() if one.is_file())
    pickled = [name for name in names if name.lower().endswith(PICKLED)]
    if pickled and len(pickled) == len(names):
        raise UsageError(
            f"{source}: {pickled[0]} is a pickle, whose loading runs code; expected Parquet or "
            "JSONL; convert it where it was written, such as with torch and pyarrow"
        )
    if not path.exists():
        raise UsageError(f"{source}: no such file or folder; expected one; check SOURCE")
