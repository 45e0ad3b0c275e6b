"""Reading a corpus: records from JSONL, Parquet, Arrow or CSV files, and which columns matter."""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from caskd.store.errors import UsageError

Record = dict[str, Any]
Kind = Literal["messages", "prompt", "text"]
KINDS: tuple[Kind, ...] = (
    "messages",
    "prompt",
    "text",
)  # in the order in which they are looked for


@dataclass(frozen=True)
class Columns:
    """Names of the columns that hold the text.

    `kind` says which of the three shapes the corpus has; None until `decide_columns` saw a record.
    """

    prompt: str = "prompt"
    response: str = "response"
    messages: str = "messages"
    text: str = "text"
    task: str = "task"
    kind: Kind | None = None

    def of(self, kind: Kind) -> dict[str, str]:
        """Columns that a corpus of this kind needs: role -> name in the file."""
        roles = ("prompt", "response") if kind == "prompt" else (kind,)
        return {role: getattr(self, role) for role in roles}


def decide_columns(record: Record, columns: Columns) -> Columns:
    """`columns` with its kind set from the first record's columns.

    A kind whose columns were named by the user is taken, or refused where they are missing; else
    messages where present, else prompt and response, else text.

    Raises:
        UsageError: no kind is complete; says which columns there are and the flag to type.
    """
    if columns.kind is not None:
        return columns
    default = Columns()
    named = [kind for kind in KINDS if columns.of(kind) != default.of(kind)]
    for kind in named or KINDS:
        if all(name in record for name in columns.of(kind).values()):
            return replace(columns, kind=kind)
    partial = [k for k in KINDS if any(name in record for name in columns.of(k).values())]
    nearest = (named or partial or ["prompt"])[0]
    missing = {r: name for r, name in columns.of(nearest).items() if name not in record}
    raise UsageError(
        f"no column {' and '.join(map(repr, missing.values()))} in the data, which has "
        f"{', '.join(map(repr, record))}; expected prompt and response, or messages, or text; "
        f"type {' '.join(f'--{role}-column NAME' for role in missing)}"
    )


def column_value(record: Record, columns: Columns, role: str) -> Any:
    """Value of the column that plays `role`; text where the role asks for text.

    Raises:
        UsageError: the column is missing here, or is not text (or, for messages, a list).
    """
    name = getattr(columns, role)
    expected: type = list if role == "messages" else str
    if name not in record:
        raise UsageError(
            f"a record has no column {name!r}, only {', '.join(map(repr, record))}; "
            f"every record needs it: type --{role}-column NAME or mend the data"
        )
    value = record[name]
    if not isinstance(value, expected):
        kind = "a list of messages" if role == "messages" else "text"
        raise UsageError(
            f"column {name!r} holds {type(value).__name__}, expected {kind} in every record; "
            f"type --{role}-column NAME or mend the data"
        )
    return value


def record_task(record: Record, columns: Columns) -> str:
    """Task of a record, "" where it names none."""
    task = record.get(columns.task)
    return "" if task is None else str(task)


def canonical_record(record: Record, columns: Columns) -> bytes:
    """What of a record enters a store, in one spelling: the same for any file name or format."""
    columns = decide_columns(record, columns)
    assert columns.kind is not None
    content: dict[str, Any] = {
        role: column_value(record, columns, role) for role in columns.of(columns.kind)
    }
    content["task"] = record_task(record, columns)
    return json.dumps(content, sort_keys=True, ensure_ascii=True, default=str).encode()


def corpus_digest(records: Iterator[Record], columns: Columns) -> tuple[str, int]:
    """sha256 over the records' canonical content in order, and their number."""
    digest, count = hashlib.sha256(), 0
    for record in records:
        content = canonical_record(record, columns)
        digest.update(len(content).to_bytes(8, "little") + content)
        count += 1
    return digest.hexdigest(), count


def read_records(files: Sequence[str]) -> Iterator[Record]:
    """Records of all files in order, streamed; every file is looked for before the first is read.

    A file is a path, or `hf://datasets/USER/NAME[@REVISION]/PATH`.

    Raises:
        UsageError: no file, a missing file, an ending that is not known, or no record at all.
    """
    if not files:
        raise UsageError("no data files given; type --data FILE [FILE ...]")
    files = [local_copy(file) if file.startswith(SCHEME) else file for file in files]
    for file in files:
        if not Path(file).is_file():
            raise UsageError(f"no data file {file!r}; expected an existing file, check --data")
        if Path(file).suffix.lower() not in _READERS:
            raise UsageError(
                f"data file {file!r} ends in {Path(file).suffix!r}; expected one of "
                f"{', '.join(_READERS)}: convert it, or give --data another file"
            )
    return _stream(files)


def _stream(files: Sequence[str]) -> Iterator[Record]:
    count = 0
    for file in files:
        for record in _READERS[Path(file).suffix.lower()](file):
            count += 1
            yield record
    if count == 0:
        names = ", ".join(map(repr, files))
        raise UsageError(f"no records in {names}; expected one or more, check --data")


def _read_jsonl(file: str) -> Iterator[Record]:
    with open(file, encoding="utf-8-sig") as lines:
        number = 0
        try:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield _as_record(json.loads(line), file, number)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            place = f"{file}, line {number + isinstance(error, UnicodeDecodeError)}"
            raise UsageError(
                f"{place}: {error}; expected one JSON object a line in UTF-8: mend that line"
            ) from error


def _as_record(value: Any, file: str, number: int) -> Record:
    if not isinstance(value, dict):
        raise UsageError(
            f"{file}, line {number}: got a {type(value).__name__}, expected one JSON object a line "
            f"such as {{'prompt': ..., 'response': ...}}"
        )
    return value


def _read_parquet(file: str) -> Iterator[Record]:
    import pyarrow.parquet as pq

    with _readable(file, "Parquet"):
        for batch in pq.ParquetFile(file).iter_batches(batch_size=1024):
            yield from batch.to_pylist()


def _read_arrow(file: str) -> Iterator[Record]:
    import pyarrow as pa

    with _readable(file, "Arrow"), pa.memory_map(file) as source:
        try:  # the file format has a footer; the stream format, which `datasets` writes, has none
            reader = pa.ipc.open_file(source)
            batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
        except pa.ArrowInvalid:
            source.seek(0)
            batches = iter(pa.ipc.open_stream(source))
        for batch in batches:
            yield from batch.to_pylist()


def _read_csv(file: str) -> Iterator[Record]:
    import pyarrow as pa
    import pyarrow.csv as pc

    with _readable(file, "CSV"):
        if Path(file).stat().st_size == 0:
            return
        parse = pc.ParseOptions(newlines_in_values=True)
        with pc.open_csv(file, parse_options=parse) as reader:
            names = reader.schema.names
        # Text stays text: a response "007" is no number and "NA" is no missing value.
        convert = pc.ConvertOptions(column_types=dict.fromkeys(names, pa.string()))
        with pc.open_csv(file, parse_options=parse, convert_options=convert) as reader:
            for batch in reader:
                yield from batch.to_pylist()


class _readable:
    """Turns what pyarrow raises for a broken file into one line for the user."""

    def __init__(self, file: str, what: str) -> None:
        self.file, self.what = file, what

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        import pyarrow as pa

        if isinstance(error, pa.ArrowException | OSError):
            raise UsageError(
                f"{self.file}: not readable as {self.what} ({' '.join(str(error).split())}); "
                f"expected a whole {self.what} file: write it again"
            ) from error


_READERS: dict[str, Callable[[str], Iterator[Record]]] = {
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
    ".arrow": _read_arrow,
    ".csv": _read_csv,
}


SCHEME = "hf://"
_URL = re.compile(r"hf://datasets/([\w.-]+/[\w.-]+)(?:@([\w./-]+?))?/((?:[\w.=+-]+/)*[\w.=+-]+)")


def local_copy(url: str) -> str:
    """The file on this machine, fetched unless the Hub's cache has it.

    Raises:
        UsageError: not such a URL, no such file, or no connection.
    """
    match = _URL.fullmatch(url)
    if match is None:
        raise UsageError(
            f"data file {url!r} is no file of a data set; expected "
            "hf://datasets/USER/NAME/PATH, such as .../data/train-00000-of-00001.parquet"
        )
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    repository, revision, path = match.groups()
    try:
        return hf_hub_download(repository, path, repo_type="dataset", revision=revision)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise UsageError(
            f"no data file {url!r}: the Hub gave {type(error).__name__}; expected a file that is "
            "there: check --data, the connection, and HF_TOKEN for a private data set"
        ) from error
