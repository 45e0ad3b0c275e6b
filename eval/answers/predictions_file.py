"""The predictions file: one model's answers to a set of examples, as Parquet.

The file is written whole or not at all. Its metadata holds the model, the decoding settings and the
digest of the data; it holds no path of the machine that wrote it.
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

from caskd.eval.answers.checks import CASCADE_COUNTS, OUTCOMES, check_values, num_parameters
from caskd.store.corpus import parquet_batches, size_limit
from caskd.store.errors import UsageError
from caskd.store.io import StrangeFileError, check_readable, parse_json, refuse_mixup, value_text

FORMAT = "caskd-predictions"
FORMAT_VERSION = 1

TOKEN_CASCADE = "token-cascade"
"""`kind` in the metadata of answers that two models wrote together."""
SERVED = "server"
"""`model.engine` in the metadata of answers that came from a server."""
TOKEN_FLOPS = "FLOPs per token"
"""Unit of the cost of a model's answers in predictions files."""

SCHEMA = pa.schema(
    [
        ("example_id", pa.string()),  # the record's own id, else its index in the data
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
TOKEN_COLUMNS = ("token_ids", "token_logprobs")
"""Columns that are null where a server names no ids or log-probabilities of its tokens."""
OPTIONAL = pa.schema(
    [
        ("token_margins", pa.list_(pa.float32())),  # log-probability minus that of the second
        ("token_entropies", pa.list_(pa.float32())),  # nats
        ("option_logprobs", pa.list_(pa.float32())),  # of each option's first token
        ("hidden", pa.list_(pa.float32())),  # state of the prompt's last token
        ("references", pa.list_(pa.string())),  # where there are several; the first is `reference`
        ("options", pa.list_(pa.string())),
        ("finish_reason", pa.string()),  # of a served answer: stop, length or content_filter
        # Of a token cascade: tokens that each model chose, drafts, forward passes, positions.
        *((name, pa.int32()) for name in CASCADE_COUNTS),
        ("expected_acceptance", pa.float64()),  # of drawn drafts, for the rule spec
    ]
)
"""Optional columns; null for an example without a value."""
WHOLE = pa.schema([*SCHEMA, *OPTIONAL])


@dataclass(frozen=True)
class Predictions:
    """One model's answers: arrays and lists have one value per example, in the data's order."""

    source: str
    """Name of the file, for messages."""
    metadata: Mapping[str, Any]
    """`model`, `decoding`, `tasks`, `quality`, `data_digest`, `versions` and `caskd_version`."""
    columns: pa.Table

    def __len__(self) -> int:
        return int(self.columns.num_rows)

    @property
    def model_name(self) -> str:
        """Hub id or last folder name of the model."""
        return str(self.metadata["model"]["name"])

    @property
    def num_parameters(self) -> int | None:
        """Parameters of the model, embeddings included; None for a served one of unknown size."""
        return num_parameters(self.metadata["model"]["num_parameters"])

    @property
    def num_active_parameters(self) -> int | None:
        """Parameters that one token uses: all, but of a mixture of experts the chosen ones only.

        All of them, too, where the file does not name the number.
        """
        active: int | None = self.metadata["model"].get("num_active_parameters")
        return active or self.num_parameters

    @property
    def is_outcomes(self) -> bool:
        """Whether these are rows of an outcome table: no answers, no parameters, own costs."""
        return self.metadata.get("kind") == OUTCOMES

    @property
    def has_cost(self) -> bool:
        """Whether the cost of an answer is known: by the model's parameters, or as stated."""
        return self.is_outcomes or self.num_parameters is not None

    @property
    def cost_unit(self) -> str:
        """Unit of the cost of an answer (`caskd.eval.curves.answer_cost`)."""
        return str(self.metadata.get("cost_unit", TOKEN_FLOPS))

    @property
    def is_token_cascade(self) -> bool:
        """Whether a small and a large model wrote the answers together, token by token."""
        return self.metadata.get("kind") == TOKEN_CASCADE

    def check_one_model(self, flag: str) -> None:
        """Refuse the answers of a token cascade where those of one model are needed.

        Raises:
            UsageError: two models wrote the answers together.
        """
        if self.is_token_cascade:
            raise UsageError(
                f"{flag} {self.source}: holds answers of a token cascade, "
                f"{value_text(self.model_name)}; expected those of one model; pass it with "
                "--token-cascade, and caskd predict without --large writes those of one model"
            )

    def strings(self, name: str) -> list[str]:
        """A text column."""
        values: list[str] = self.columns.column(name).to_pylist()
        return values

    def numbers(self, name: str) -> npt.NDArray[np.float64]:
        """A numeric column [E]."""
        return np.asarray(self.columns.column(name).to_numpy(), dtype=np.float64)

    def references(self) -> list[list[str]]:
        """Accepted answers to each question, one or more."""
        single = [[text] for text in self.strings("reference")]
        if "references" not in self.columns.column_names:
            return single
        several: list[list[str] | None] = self.columns.column("references").to_pylist()
        return [many or only for many, only in zip(several, single, strict=True)]

    def options(self) -> list[list[str]]:
        """Options of each multiple-choice question; empty for other questions."""
        if "options" not in self.columns.column_names:
            return [[] for _ in range(len(self))]
        found: list[list[str] | None] = self.columns.column("options").to_pylist()
        return [options or [] for options in found]

    def num_empty(self) -> int:
        """Answers without any text; an outcome table has no texts to count."""
        if self.is_outcomes:
            return 0
        return sum(not text.strip() for text in self.strings("text"))

    def num_finished_by(self, reason: str) -> int:
        """Answers of a server that ended for this reason: length, content_filter."""
        if "finish_reason" not in self.columns.column_names:
            return 0
        return self.strings("finish_reason").count(reason)

    def take(self, indices: npt.NDArray[np.int64]) -> "Predictions":
        """The examples at these indices, in this order."""
        return Predictions(self.source, self.metadata, self.columns.take(pa.array(indices)))


def digest(value: bytes) -> str:
    """The first 32 hexadecimal digits of the SHA-256."""
    return hashlib.sha256(value).hexdigest()[:32]


def table_of(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Rows with all columns, absent ones null."""
    return pa.Table.from_pylist(list(rows), schema=WHOLE)


def predictions_bytes(table: pa.Table, metadata: Mapping[str, Any]) -> bytes:
    """Content of the file; equal tables and metadata give equal bytes.

    Args:
        table: of `WHOLE`, one row per example; columns without a value are left out.
        metadata: `model`, `decoding`, `tasks`, `quality`, `data_digest` and `versions`.
    """
    header = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "caskd_version": version("caskd"),
        **metadata,
    }
    unused = [name for name in OPTIONAL.names if table.column(name).null_count == table.num_rows]
    table = table.drop_columns(unused).combine_chunks()
    table = table.replace_schema_metadata({"caskd": json.dumps(header, sort_keys=True)})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    content: bytes = sink.getvalue().to_pybytes()
    return content


def read_predictions(file: str) -> Predictions:
    """Open a predictions file.

    Raises:
        UsageError: it is missing, empty, not written by `caskd predict`, or names an example twice.
    """
    path = Path(file)
    refuse_mixup(path, file, "predictions")
    if not path.is_file():
        raise UsageError(
            f"{file}: does not exist; expected a predictions file; write it with "
            f"caskd predict --model M --data D --out {file}"
        )
    try:
        table = read_own_columns(path)
    except StrangeFileError as error:
        raise _not_predictions(file, str(error)) from None
    except MemoryError:
        raise _not_predictions(file, "does not fit into memory") from None
    except (pa.ArrowException, OSError, ValueError) as error:
        check_readable(error, str(file))
        raise _not_predictions(file, "not a Parquet file") from None
    metadata = _header(file, table)
    table = _with_digests(table)
    names = [*SCHEMA.names, *(name for name in OPTIONAL.names if name in table.column_names)]
    try:
        own = table.select(names).cast(pa.schema([WHOLE.field(name) for name in names]))
    except (KeyError, pa.ArrowException):
        raise _not_predictions(file, "columns are missing or of another type") from None
    if not table.num_rows:
        raise UsageError(
            f"{file}: holds no example; expected at least one; rerun caskd predict with more data"
        )
    _check_rows(file, own, is_served=metadata["model"].get("engine") == SERVED)
    check_values(file, own, metadata)
    return Predictions(path.name, metadata, own)


def read_own_columns(path: Path) -> pa.Table:
    """The columns of predictions in a Parquet file, with its metadata; no others are read.

    Raises:
        StrangeFileError: they take far more memory than a file of this size can need.
        OSError, ValueError, ArrowException: not a whole Parquet file.
    """
    with pq.ParquetFile(path) as source:
        schema = source.schema_arrow
        names = [name for name in WHOLE.names if name in schema.names]
        twice = next((name for name in names if schema.names.count(name) > 1), None)
        if twice is not None:
            raise StrangeFileError(f"the column {twice!r} stands twice")
        chosen = pa.schema([schema.field(name) for name in names], schema.metadata)
        batches = list(parquet_batches(source, names, size_limit(path)))
    return pa.Table.from_batches(batches, chosen).combine_chunks()


def _header(file: str, table: pa.Table) -> Mapping[str, Any]:
    try:
        header = parse_json((table.schema.metadata or {})[b"caskd"])
        known = header["format"] == FORMAT and _has_types(header)
        number, parameters = header["version"], header["model"]["num_parameters"]
        active = header["model"].get("num_active_parameters")
    except (KeyError, TypeError, ValueError, AttributeError):
        raise _not_predictions(file, "no caskd metadata") from None
    if not known:
        raise _not_predictions(file, "no caskd metadata")
    if number != FORMAT_VERSION:
        raise UsageError(
            f"{file}: format version is {value_text(number)}; expected {FORMAT_VERSION}; "
            "install a newer caskd"
        )
    unknown = parameters is None and header["model"].get("engine") == SERVED
    if num_parameters(parameters) is None and not unknown:
        raise UsageError(
            f"{file}: metadata model.num_parameters is {value_text(parameters)}, expected a whole "
            "number above 0; rerun caskd predict"
        )
    if active is not None and not (type(active) is int and 0 < active <= (parameters or 0)):
        raise _not_predictions(
            file,
            f"num_active_parameters is {value_text(active)}, expected 1 to {parameters or 0:,}",
        )
    return dict(header)


def _has_types(header: Mapping[str, Any]) -> bool:
    """Whether the fields that are read later have their types."""
    model, tasks = header["model"], header.get("tasks") or {}
    texts = (model["name"], header["quality"], *(task["metric"] for task in tasks.values()))
    return all(isinstance(text, str) and text for text in texts) and all(
        isinstance(header.get(name) or {}, dict) for name in ("decoding", "text", "versions")
    )


def _with_digests(table: pa.Table) -> pa.Table:
    """An empty digest where a question has none: its example is then a question of its own."""
    name = "question_digest"
    if name not in table.column_names:
        return table.append_column(name, pa.array([""] * len(table), pa.string()))
    if not table.column(name).null_count:
        return table
    filled = table.column(name).cast(pa.string()).fill_null("")
    return table.set_column(table.column_names.index(name), name, filled)


def _check_rows(file: str, table: pa.Table, *, is_served: bool) -> None:
    needed = [name for name in SCHEMA.names if not (is_served and name in TOKEN_COLUMNS)]
    if any(table.column(name).null_count for name in needed):
        raise _not_predictions(file, "values are missing")
    names = sorted(table.column("example_id").to_pylist())
    twice = next((name for name, after in pairwise(names) if name == after), None)
    if twice is not None:
        raise UsageError(
            f"{file}: duplicate example id {value_text(twice)}; expected unique ids; "
            "rerun caskd predict"
        )


def _not_predictions(file: str, why: str) -> UsageError:
    return UsageError(
        f"{file}: {why}; expected a predictions file; "
        "write it with caskd predict --model M --data D --out F"
    )
