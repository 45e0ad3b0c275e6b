"""The predictions file: one model's answers to a set of examples, as Parquet.

Written whole or not at all; its metadata says which model answered, how, and from which data. It
carries no path of the machine that wrote it.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from caskd.store.errors import UsageError
from caskd.store.files import create_exclusive

FORMAT = "caskd-predictions"
FORMAT_VERSION = 1
QUALITY = "exact_match"

SCHEMA = pa.schema(
    [
        ("example_id", pa.string()),  # the record's own id, else its place in the data
        ("source_index", pa.int64()),
        ("prompt_digest", pa.string()),  # of the prompt's token ids
        ("question_digest", pa.string()),  # of the question as text, the same for every tokenizer
        ("task", pa.string()),
        ("text", pa.string()),
        ("token_ids", pa.list_(pa.uint32())),  # the end-of-sequence token included
        ("token_logprobs", pa.list_(pa.float32())),
        ("reference", pa.string()),
        ("quality", pa.float64()),
        ("prompt_tokens", pa.int32()),
        ("output_tokens", pa.int32()),
        ("seconds", pa.float64()),  # the batch's time, shared equally
    ]
)


OPTIONAL_COLUMNS = ("token_margins", "token_entropies", "option_logprobs", "hidden")
"""Lists of numbers that some deferral rules read; a file may hold them."""


@dataclass(frozen=True)
class Predictions:
    """One model's answers: arrays and lists have one value per example, in the data's order."""

    source: str
    """Name of the file, for messages."""
    metadata: Mapping[str, Any]
    """`model`, `decoding`, `data_digest`, `quality` and `caskd_version`."""
    columns: pa.Table

    def __len__(self) -> int:
        return int(self.columns.num_rows)

    @property
    def model_name(self) -> str:
        """Hub id or last folder name of the model."""
        return str(self.metadata["model"]["name"])

    @property
    def num_parameters(self) -> int:
        """Parameters of the model, embeddings included."""
        return int(self.metadata["model"]["num_parameters"])

    def strings(self, name: str) -> list[str]:
        """A text column."""
        values: list[str] = self.columns.column(name).to_pylist()
        return values

    def numbers(self, name: str) -> npt.NDArray[np.float64]:
        """A numeric column [E]."""
        return np.asarray(self.columns.column(name).to_numpy(), dtype=np.float64)

    def token_logprobs(self) -> list[npt.NDArray[np.float32]]:
        """Log-probabilities of each answer's tokens."""
        column = self.columns.column("token_logprobs").combine_chunks()
        flat, ends = column.flatten().to_numpy(), np.cumsum(column.value_lengths().to_numpy())
        return np.split(flat, ends[:-1])

    def take(self, indices: npt.NDArray[np.int64]) -> "Predictions":
        """The examples at these places, in this order."""
        return Predictions(self.source, self.metadata, self.columns.take(pa.array(indices)))


def exact_match(text: str, reference: str) -> float:
    """1.0 if the answer equals the reference once runs of white space are one space, else 0.0."""
    return float(text.split() == reference.split())


def digest(value: bytes) -> str:
    """The first 32 hexadecimal digits of the SHA-256."""
    return hashlib.sha256(value).hexdigest()[:32]


def refuse_existing(path: Path) -> None:
    """Stop before any work if the file to write is there.

    Raises:
        UsageError: something stands at `path`.
    """
    if path.exists() or path.is_symlink():
        raise UsageError(f"{path} exists; remove it or choose another --out")
    if path.suffix != ".parquet":
        raise UsageError(f"--out {path}: expected a name that ends in .parquet")


def write_predictions(
    path: Path, rows: Sequence[Mapping[str, Any]], metadata: Mapping[str, Any]
) -> Predictions:
    """Write the file in one step.

    Raises:
        UsageError: the file exists by now.
    """
    header = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "caskd_version": version("caskd"),
        **metadata,
    }
    table = pa.Table.from_pylist(list(rows), schema=SCHEMA)
    table = table.replace_schema_metadata({"caskd": json.dumps(header, sort_keys=True)})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    if not create_exclusive(path, sink.getvalue().to_pybytes()):
        refuse_existing(path)
    return Predictions(path.name, header, table)


def read_predictions(file: str) -> Predictions:
    """Open a predictions file.

    Raises:
        UsageError: it is missing, empty, not written by `caskd predict`, or names an example twice.
    """
    path = Path(file)
    if not path.is_file():
        raise UsageError(
            f"{file}: no such file; write it with: caskd predict --model M --data D --out {file}"
        )
    try:
        table = pq.read_table(path, partitioning=None)
    except (pa.ArrowException, OSError):
        raise _not_predictions(file, "not a Parquet file") from None
    metadata = _header(file, table)
    try:
        own = table.select(SCHEMA.names).cast(SCHEMA)
    except (KeyError, pa.ArrowException):
        raise _not_predictions(file, "columns are missing or of another type") from None
    if not table.num_rows:
        raise UsageError(f"{file}: holds no example; give caskd predict data with at least one")
    _check_values(file, own)
    for name in OPTIONAL_COLUMNS:
        if name in table.column_names:
            own = own.append_column(name, table.column(name))
    return Predictions(path.name, metadata, own)


def _header(file: str, table: pa.Table) -> Mapping[str, Any]:
    try:
        header = json.loads((table.schema.metadata or {})[b"caskd"])
        known = header["format"] == FORMAT and header["model"]["name"] and header["quality"]
        number, _ = header["version"], int(header["model"]["num_parameters"])
    except (KeyError, TypeError, ValueError):
        raise _not_predictions(file, "no caskd metadata") from None
    if not known:
        raise _not_predictions(file, "no caskd metadata")
    if number != FORMAT_VERSION:
        raise UsageError(
            f"{file}: predictions of version {number}, expected {FORMAT_VERSION}; "
            "install a newer caskd"
        )
    return dict(header)


def _check_values(file: str, table: pa.Table) -> None:
    if any(column.null_count for column in table.columns):
        raise _not_predictions(file, "values are missing")
    names = sorted(table.column("example_id").to_pylist())
    twice = next((name for name, after in pairwise(names) if name == after), None)
    if twice is not None:
        raise UsageError(
            f"{file}: example {twice!r} is there twice, expected each once; predict again"
        )


def _not_predictions(file: str, why: str) -> UsageError:
    return UsageError(
        f"{file}: {why}, expected a file of caskd predict; "
        "write it with: caskd predict --model M --data D --out F"
    )
