"""Parquet read in bounded batches: only the asked columns, and never far beyond the file's size."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from caskd.store.io import StrangeFileError

MOST_ROWS = 64
"""Rows of a batch; a dictionary of few bytes can expand to the longest value for each of them."""
_BATCH_BYTES = 256 << 20
_PLAUSIBLE_BYTES, _PLAUSIBLE_RATIO = 64 << 20, 1000


def parquet_batches(source: Any, columns: Sequence[str], limit: int | None = None) -> Iterator[Any]:
    """Record batches of the asked columns, each checked as a whole.

    Args:
        source: an open `pyarrow.parquet.ParquetFile`.
        columns: their names.
        limit: bytes in memory of all batches together; None for no limit.

    Raises:
        StrangeFileError: a declared size is implausible, or the batches exceed `limit`.
    """
    total = 0
    for number in range(source.metadata.num_row_groups):
        # The metadata of a damaged chunk ends Python where it is looked at, but not where it is
        # read: the first row is read before the sizes are looked at.
        chosen = {"columns": list(columns), "row_groups": [number], "use_threads": False}
        if next(iter(source.iter_batches(batch_size=1, **chosen)), None) is None:
            continue
        rows = rows_at_once(source.metadata, number, columns)
        for batch in source.iter_batches(batch_size=rows, **chosen):
            batch.validate(full=True)
            total += batch.nbytes
            if limit is not None and total > limit:
                raise StrangeFileError(f"expands to more than {limit:,} bytes")
            yield batch


def rows_at_once(metadata: Any, number: int, columns: Sequence[str]) -> int:
    """Rows of a batch of a row group such that one with the longest possible values is bounded.

    Raises:
        StrangeFileError: a column declares far more bytes than its compressed ones can hold.
    """
    group, paths = metadata.row_group(number), metadata.schema
    largest = 0
    for index in range(metadata.num_columns):
        if paths.column(index).path.partition(".")[0] not in columns:
            continue
        chunk = group.column(index)
        declared, packed = chunk.total_uncompressed_size, chunk.total_compressed_size
        if not 0 <= declared <= max(_PLAUSIBLE_BYTES, _PLAUSIBLE_RATIO * packed):
            raise StrangeFileError(
                f"a column declares {declared:,} bytes in {packed:,} compressed ones"
            )
        largest = max(largest, declared)
    return max(4, min(MOST_ROWS, _BATCH_BYTES // max(largest, 1)))


def size_limit(file: Path) -> int:
    """Bytes in memory that a table of a file's size may take."""
    return (256 << 20) + 64 * file.stat().st_size
