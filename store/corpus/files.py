"""Reads records from JSONL, Parquet, Arrow and CSV files, local or on the Hugging Face Hub."""

import glob
import json
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TextIO

from caskd.store.corpus.columns import LocatedRecord, Record
from caskd.store.corpus.table_files import read_arrow, read_csv, read_parquet
from caskd.store.errors import UsageError, reason
from caskd.store.io import (
    DATA_ENDINGS,
    MAX_JSON_DEPTH,
    check_readable,
    depth_exceeds,
    refuse_mixup,
)

OnBadText = Literal["error", "replace"]
MAX_LINE = 256 << 20
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_LONE = re.compile("[\ud800-\udfff]")

HUB_SCHEME = "hf://"
_HUB_URL = re.compile(
    r"hf://datasets/([\w.-]+/[\w.-]+)(?:@([\w./-]+?))?/((?:[\w.=+-]+/)*[\w.=+-]+)"
)


def read_records(
    files: Sequence[str],
    wanted: Collection[str] | None = None,
    on_bad_text: OnBadText = "error",
    flag: str = "--data",
) -> Iterator[Record]:
    """Stream the records of all files in order, after checking that every file exists.

    A file is a path, a folder of data files, a pattern such as `data/*.jsonl`, or
    `hf://datasets/USER/NAME[@REVISION]/PATH`. The files of a folder or a pattern are read in the
    order of their names.

    Args:
        files: as above.
        wanted: columns whose values are read; a table file's other columns have a mark instead.
            By default all columns.
        on_bad_text: what becomes of half a surrogate pair in JSON: an error, or U+FFFD.
        flag: the flag that names the files, for errors.

    Raises:
        UsageError: no files, a missing file, an unknown file type, or no record at all.
    """
    if not files:
        raise UsageError(
            f"{flag}: no file given; expected at least one; pass {flag} FILE [FILE ...]"
        )
    found = [one for file in files for one in _expanded(file, flag)]
    for file in found:
        refuse_mixup(file, f"{flag} {file}", "data")
        if not Path(file).is_file():
            raise UsageError(f"{flag} {file}: no such file; {_missing_cure(file, flag)}")
        if Path(file).suffix.lower() not in _ENDINGS:
            raise UsageError(
                f"{flag} {file}: ends in {Path(file).suffix!r}; expected one of "
                f"{', '.join(_ENDINGS)}; convert it, or pass another file"
            )
    return _stream(found, wanted, on_bad_text, flag)


def _expanded(file: str, flag: str) -> list[str]:
    """The files that one value of a flag names.

    Raises:
        UsageError: a folder without data files or with several types, or a pattern without a match.
    """
    if file.startswith(HUB_SCHEME):
        return [_hub_file(file, flag)]
    if Path(file).is_dir():
        return _files_of(file, flag)
    if Path(file).exists() or not glob.has_magic(file):
        return [file]
    matches = sorted(name for name in glob.glob(file) if Path(name).is_file())
    if not matches:
        raise UsageError(f"{flag} {file}: no file matches; expected one or more; check the pattern")
    return matches


def _files_of(folder: str, flag: str) -> list[str]:
    """The data files directly inside a folder, by name.

    Raises:
        UsageError: there are none, or files of several types.
    """
    refuse_mixup(folder, f"{flag} {folder}", "data")
    names = sorted(path.name for path in Path(folder).iterdir() if path.is_file())
    names = [n for n in names if n.lower().endswith(DATA_ENDINGS) and not n.startswith((".", "_"))]
    endings = sorted({Path(name).suffix.lower() for name in names})
    if len(endings) != 1:
        found = f"holds {' and '.join(endings)} files" if endings else "a folder without data files"
        raise UsageError(
            f"{flag} {folder}: {found}; expected files of one type, one of "
            f"{', '.join(DATA_ENDINGS)}; pass the files, or a pattern such as "
            f"'{Path(folder) / ('*' + (endings or DATA_ENDINGS)[0])}'"
        )
    return [str(Path(folder) / name) for name in names]


def _missing_cure(file: str, flag: str) -> str:
    """What to pass instead of a file that does not exist."""
    hub = _HUB_ID.fullmatch(file)
    if hub is None or Path(file).suffix.lower() in DATA_ENDINGS:
        return f"expected an existing file; check {flag}"
    return (
        "expected an existing file, or a file of a data set on the hub; pass "
        f"{HUB_SCHEME}datasets/{hub[1]}/PATH, such as .../data/train-00000-of-00001.parquet"
    )


_HUB_ID = re.compile(r"(?:https://huggingface\.co/datasets/)?([\w.-]+/[\w.-]+)")


def _hub_file(url: str, flag: str) -> str:
    """Local path of a dataset file on the Hub, downloaded unless the Hub's cache has it.

    Raises:
        UsageError: malformed URL, missing file, or no connection.
    """
    match = _HUB_URL.fullmatch(url)
    if match is None:
        raise UsageError(
            f"{flag} {url}: not a file of a dataset; expected hf://datasets/USER/NAME/PATH; pass "
            "one such as .../data/train-00000-of-00001.parquet"
        )
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    repository, revision, path = match.groups()
    try:
        return hf_hub_download(repository, path, repo_type="dataset", revision=revision)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        check_readable(error, f"{flag} {url}")
        raise UsageError(
            f"{flag} {url}: download failed with {type(error).__name__}; expected an existing "
            f"file; check {flag}, the connection, and HF_TOKEN for a private dataset"
        ) from error


def _stream(
    files: Sequence[str], wanted: Collection[str] | None, on_bad_text: OnBadText, flag: str
) -> Iterator[Record]:
    count = 0
    for file in files:
        suffix = Path(file).suffix.lower()
        if suffix == ".jsonl":
            records = _read_jsonl(file, wanted, on_bad_text, flag)
        else:
            records = _TABLES[suffix](file, wanted)
        for number, record in enumerate(records):
            count += 1
            yield (
                record if suffix == ".jsonl" else LocatedRecord(record, f"{file}, record {number}")
            )
    if count == 0:
        names = ", ".join(map(repr, files[:3])) + (", ..." if files[3:] else "")
        raise UsageError(f"{flag} {names}: no records; expected one or more; check the files")


def _read_jsonl(
    file: str, wanted: Collection[str] | None, on_bad_text: OnBadText, flag: str
) -> Iterator[Record]:
    # Windows editors write a byte order mark.
    with _opened(file, flag) as lines:
        number = 0
        while line := _next_line(lines, file, number + 1):
            number += 1
            if line.strip():
                record = _as_record(_parsed(line, file, number), file, number)
                if _SURROGATE.search(line):
                    record = _clean_record(record, wanted, on_bad_text, f"{file}, line {number}")
                yield record


def _opened(file: str, flag: str) -> TextIO:
    try:
        return open(file, encoding="utf-8-sig")
    except OSError as error:
        check_readable(error, f"{flag} {file}")
        raise UsageError(
            f"{flag} {file}: {reason(error)}; expected a readable file; check {flag}"
        ) from None


def _next_line(lines: TextIO, file: str, number: int) -> str:
    try:
        line = lines.readline(MAX_LINE)
    except (UnicodeDecodeError, OSError) as error:
        check_readable(error, file)
        raise _bad_line(file, number, reason(error)) from None
    if len(line) == MAX_LINE:
        raise _bad_line(file, number, f"{MAX_LINE:,} characters or more")
    return line


def _parsed(line: str, file: str, number: int) -> Any:
    """The JSON of a line. Columns that nobody reads may hold NaN, or a key twice."""
    try:
        value = json.loads(line)
    except RecursionError:
        raise _bad_line(file, number, f"nested deeper than {MAX_JSON_DEPTH} levels") from None
    except ValueError as error:
        raise _bad_line(file, number, reason(error)) from None
    if line.count("{") + line.count("[") > MAX_JSON_DEPTH and depth_exceeds(value, MAX_JSON_DEPTH):
        raise _bad_line(file, number, f"nested deeper than {MAX_JSON_DEPTH} levels")
    return value


def _bad_line(file: str, number: int, problem: str) -> UsageError:
    return UsageError(
        f"{file}, line {number}: {problem}; expected one JSON object a line in UTF-8; fix that line"
    )


def _as_record(value: Any, file: str, number: int) -> Record:
    if not isinstance(value, dict):
        raise UsageError(
            f"{file}, line {number}: got a {type(value).__name__}; expected one JSON object a line "
            f"such as {{'prompt': ..., 'response': ...}}; fix that line"
        )
    return LocatedRecord(value, f"{file}, line {number}")


def _clean_record(
    record: Record, wanted: Collection[str] | None, on_bad_text: OnBadText, where: str
) -> Record:
    """A record whose text is Unicode: half of a surrogate pair is none, and has no bytes.

    Raises:
        UsageError: a column that is read holds one, and `on_bad_text` is `error`.
    """
    clean = dict(record)
    for name, value in record.items():
        text = json.dumps(value, ensure_ascii=False)
        if (wanted is not None and name not in wanted) or _LONE.search(text) is None:
            continue
        if on_bad_text == "error":
            raise UsageError(
                f"{where}: column {name!r} holds half of a surrogate pair, which is no text; "
                "expected Unicode; fix that record, or pass --on-bad-text replace to write U+FFFD "
                "in its place"
            )
        clean[name] = json.loads(_LONE.sub("\ufffd", text))
    return clean


_TABLES: dict[str, Callable[[str, Collection[str] | None], Iterator[Record]]] = {
    ".parquet": read_parquet,
    ".arrow": read_arrow,
    ".csv": read_csv,
}
"""Reader of each table file, by the ending of the file's name."""
_ENDINGS = (".jsonl", *_TABLES)
