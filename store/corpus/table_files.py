"""Records of Parquet, Arrow and CSV files: asked columns only, checked before they are read."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from caskd.store.corpus.columns import Record
from caskd.store.corpus.parquet import parquet_batches
from caskd.store.errors import UsageError, reason

UNREAD = "<not read>"
"""Value of a column that nobody asked for."""
_SLICE = 64


def read_parquet(file: str, wanted: Collection[str] | None) -> Iterator[Record]:
    """Records of a Parquet file."""
    import pyarrow.parquet as pq

    with _translated(file, "Parquet"), pq.ParquetFile(file) as source:
        names = source.schema_arrow.names
        asked = _asked(names, wanted)
        yield from _records(parquet_batches(source, asked), names, asked)


def read_arrow(file: str, wanted: Collection[str] | None) -> Iterator[Record]:
    """Records of an Arrow file or stream."""
    import pyarrow as pa

    with _translated(file, "Arrow"), pa.memory_map(file) as source:
        batches, names, asked = _open_arrow(source, wanted)
        yield from _records(batches, names, asked)


def read_csv(file: str, wanted: Collection[str] | None) -> Iterator[Record]:
    """Records of a CSV file; every value is text."""
    import pyarrow as pa
    import pyarrow.csv as pc

    with _translated(file, "CSV"):
        if Path(file).stat().st_size == 0:
            return
        parse = pc.ParseOptions(newlines_in_values=True)
        with pc.open_csv(file, parse_options=parse) as reader:
            names = reader.schema.names
        asked = _asked(names, wanted)
        # Every column is text: "007" is not a number and "NA" is not a missing value.
        convert = pc.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()), include_columns=asked
        )
        with pc.open_csv(file, parse_options=parse, convert_options=convert) as reader:
            yield from _records(reader, names, asked)


def _open_arrow(source: Any, wanted: Collection[str] | None) -> tuple[Any, list[str], list[str]]:
    """Batches of the asked columns, the names of all columns, and those of the asked ones."""
    import pyarrow as pa

    def options(names: Sequence[str]) -> Any:
        asked = _asked(names, wanted)
        chosen = [i for i, name in enumerate(names) if name in asked]
        return pa.ipc.IpcReadOptions(included_fields=chosen, use_threads=False)

    try:  # the file format has a footer; the stream format, which `datasets` writes, has none
        names = pa.ipc.open_file(source).schema.names
        reader = pa.ipc.open_file(source, options=options(names))
        batches: Iterable[Any] = map(reader.get_batch, range(reader.num_record_batches))
    except pa.ArrowInvalid:
        source.seek(0)
        names = pa.ipc.open_stream(source).schema.names
        source.seek(0)
        batches = pa.ipc.open_stream(source, options=options(names))
    return batches, names, _asked(names, wanted)


def _asked(names: Sequence[str], wanted: Collection[str] | None) -> list[str]:
    """The asked columns of a file, all of them without `wanted`; one at least, to count rows.

    Raises:
        UsageError: one of them stands twice.
    """
    asked = [name for name in names if wanted is None or name in wanted] or list(names[:1])
    twice = next((name for name in asked if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(
            f"the column {twice!r} stands twice; expected one of each name; rename one of the two"
        )
    return asked


def _records(
    batches: Iterable[Any], names: Sequence[str], asked: Sequence[str]
) -> Iterator[Record]:
    """The rows of batches as records, checked first: offsets beyond the data crash Python."""
    unread = dict.fromkeys(names, UNREAD)
    for batch in batches:
        batch.validate(full=True)
        for start in range(0, batch.num_rows, _SLICE):
            for row in batch.slice(start, _SLICE).to_pylist():
                yield {**unread, **row} if len(asked) < len(names) else row


@contextmanager
def _translated(file: str, file_type: str) -> Iterator[None]:
    """Turn every error about a broken file into a UsageError of one line."""
    try:
        yield
    except (GeneratorExit, KeyboardInterrupt):
        raise
    except Exception as error:
        problem = reason(error)
        if not isinstance(error, UsageError):
            problem = f"not readable as {file_type} ({problem})"
        raise UsageError(
            f"{file}: {problem}; expected a complete {file_type} file; write it again"
        ) from error
