"""Reads records from JSONL, Parquet, Arrow and CSV files, local or on the Hugging Face Hub."""

import glob
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from caskd.store.corpus.columns import LocatedRecord, Record
from caskd.store.errors import UsageError, reason
from caskd.store.io import DATA_ENDINGS, check_readable, refuse_mixup

HUB_SCHEME = "hf://"
_HUB_URL = re.compile(
    r"hf://datasets/([\w.-]+/[\w.-]+)(?:@([\w./-]+?))?/((?:[\w.=+-]+/)*[\w.=+-]+)"
)


def read_records(files: Sequence[str]) -> Iterator[Record]:
    """Stream the records of all files in order, after checking that every file exists.

    A file is a path, a folder of data files, a pattern such as `data/*.jsonl`, or
    `hf://datasets/USER/NAME[@REVISION]/PATH`. The files of a folder or a pattern are read in the
    order of their names.

    Raises:
        UsageError: no files, a missing file, an unknown file type, or no record at all.
    """
    if not files:
        raise UsageError(
            "--data: no file given; expected at least one; pass --data FILE [FILE ...]"
        )
    found = [one for file in files for one in _expanded(file)]
    for file in found:
        refuse_mixup(file, f"--data {file}", "data")
        if not Path(file).is_file():
            raise UsageError(f"--data {file}: no such file; {_missing_cure(file)}")
        if Path(file).suffix.lower() not in _READERS:
            raise UsageError(
                f"--data {file}: ends in {Path(file).suffix!r}; expected one of "
                f"{', '.join(_READERS)}; convert it, or pass another file"
            )
    return _stream(found)


def _expanded(file: str) -> list[str]:
    """The files that one value of --data names.

    Raises:
        UsageError: a folder without data files or with several types, or a pattern without a match.
    """
    if file.startswith(HUB_SCHEME):
        return [_hub_file(file)]
    if Path(file).is_dir():
        return _files_of(file)
    if Path(file).exists() or not glob.has_magic(file):
        return [file]
    matches = sorted(name for name in glob.glob(file) if Path(name).is_file())
    if not matches:
        raise UsageError(f"--data {file}: no file matches; expected one or more; check the pattern")
    return matches


def _files_of(folder: str) -> list[str]:
    """The data files directly inside a folder, by name.

    Raises:
        UsageError: there are none, or files of several types.
    """
    refuse_mixup(folder, f"--data {folder}", "data")
    names = sorted(path.name for path in Path(folder).iterdir() if path.is_file())
    names = [n for n in names if n.lower().endswith(DATA_ENDINGS) and not n.startswith((".", "_"))]
    endings = sorted({Path(name).suffix.lower() for name in names})
    if len(endings) != 1:
        found = f"holds {' and '.join(endings)} files" if endings else "a folder without data files"
        raise UsageError(
            f"--data {folder}: {found}; expected files of one type, one of "
            f"{', '.join(DATA_ENDINGS)}; pass the files, or a pattern such as "
            f"'{Path(folder) / ('*' + (endings or DATA_ENDINGS)[0])}'"
        )
    return [str(Path(folder) / name) for name in names]


def _missing_cure(file: str) -> str:
    """What to pass instead of a file that does not exist."""
    hub = _HUB_ID.fullmatch(file)
    if hub is None or Path(file).suffix.lower() in DATA_ENDINGS:
        return "expected an existing file; check --data"
    return (
        "expected an existing file, or a file of a data set on the hub; pass "
        f"{HUB_SCHEME}datasets/{hub[1]}/PATH, such as .../data/train-00000-of-00001.parquet"
    )


_HUB_ID = re.compile(r"(?:https://huggingface\.co/datasets/)?([\w.-]+/[\w.-]+)")


def _hub_file(url: str) -> str:
    """Local path of a dataset file on the Hub, downloaded unless the Hub's cache has it.

    Raises:
        UsageError: malformed URL, missing file, or no connection.
    """
    match = _HUB_URL.fullmatch(url)
    if match is None:
        raise UsageError(
            f"--data {url}: not a file of a dataset; expected hf://datasets/USER/NAME/PATH; pass "
            "one such as .../data/train-00000-of-00001.parquet"
        )
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    repository, revision, path = match.groups()
    try:
        return hf_hub_download(repository, path, repo_type="dataset", revision=revision)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        check_readable(error, f"--data {url}")
        raise UsageError(
            f"--data {url}: download failed with {type(error).__name__}; expected an existing "
            "file; check --data, the connection, and HF_TOKEN for a private dataset"
        ) from error


def _stream(files: Sequence[str]) -> Iterator[Record]:
    count = 0
    for file in files:
        is_lines = Path(file).suffix.lower() == ".jsonl"
        for number, record in enumerate(_READERS[Path(file).suffix.lower()](file)):
            count += 1
            yield record if is_lines else LocatedRecord(record, f"{file}, record {number}")
    if count == 0:
        names = ", ".join(map(repr, files[:3])) + (", ..." if files[3:] else "")
        raise UsageError(f"--data {names}: no records; expected one or more; check the files")


def _read_jsonl(file: str) -> Iterator[Record]:
    with open(file, encoding="utf-8-sig") as lines:  # Windows editors write a byte order mark
        number = 0
        try:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield _as_record(json.loads(line), file, number)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            undecoded = isinstance(error, UnicodeDecodeError)  # raised before `number` counts it
            raise UsageError(
                f"{file}, line {number + 1 if undecoded else number}: {error}; expected one JSON "
                "object a line in UTF-8; fix that line"
            ) from error
        except OSError as error:
            check_readable(error, file)
            raise


def _as_record(value: Any, file: str, number: int) -> Record:
    if not isinstance(value, dict):
        raise UsageError(
            f"{file}, line {number}: got a {type(value).__name__}; expected one JSON object a line "
            f"such as {{'prompt': ..., 'response': ...}}; fix that line"
        )
    return LocatedRecord(value, f"{file}, line {number}")


def _read_parquet(file: str) -> Iterator[Record]:
    import pyarrow.parquet as pq

    with _translate_errors(file, "Parquet"):
        for batch in pq.ParquetFile(file).iter_batches(batch_size=1024):
            yield from batch.to_pylist()


def _read_arrow(file: str) -> Iterator[Record]:
    import pyarrow as pa

    with _translate_errors(file, "Arrow"), pa.memory_map(file) as source:
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

    with _translate_errors(file, "CSV"):
        if Path(file).stat().st_size == 0:
            return
        parse = pc.ParseOptions(newlines_in_values=True)
        with pc.open_csv(file, parse_options=parse) as reader:
            names = reader.schema.names
        # Every column is text: "007" is not a number and "NA" is not a missing value.
        convert = pc.ConvertOptions(column_types=dict.fromkeys(names, pa.string()))
        with pc.open_csv(file, parse_options=parse, convert_options=convert) as reader:
            for batch in reader:
                yield from batch.to_pylist()


@contextmanager
def _translate_errors(file: str, file_type: str) -> Iterator[None]:
    """Turn a pyarrow error about a broken file into a UsageError of one line."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        check_readable(error, file)
        raise UsageError(
            f"{file}: not readable as {file_type} ({reason(error)}); "
            f"expected a complete {file_type} file; write it again"
        ) from error


_READERS: dict[str, Callable[[str], Iterator[Record]]] = {
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
    ".arrow": _read_arrow,
    ".csv": _read_csv,
}
"""Reader of each file type, by the ending of the file's name."""
